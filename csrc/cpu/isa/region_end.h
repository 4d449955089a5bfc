// Closes what region_begin.h opened.
#if defined(MLP_TARGET)
#if defined(__clang__)
MLP_PRAGMA(clang attribute pop)
#else
MLP_PRAGMA(GCC pop_options)
#endif
#endif
