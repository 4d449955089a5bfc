// Which ISA's kernels run. Chosen once, at load, from what the CPU supports; MLP_EXT_CPU_ISA
// overrides it, and a name that is unknown or not supported is an error, never a fallback.
#pragma once

#include <string>
#include <vector>

#include "kernel_table.h"

namespace mlp_ext::cpu {

// The active table. The choice is process-wide. A call reads it once and uses that table
// throughout, so that another thread may change it meanwhile.
const KernelTable& kernels();

// Reads MLP_EXT_CPU_ISA and activates the table; throws std::invalid_argument for a bad name.
void initialize_dispatch();

std::vector<std::string> compiled_isas();
// Those of them that this CPU runs, from the least to the most preferred.
std::vector<std::string> supported_isas();
// Throws std::invalid_argument, naming what is supported.
void set_isa(const std::string& name);

// True if this CPU multiplies float16 (AVX-512 FP16; on AArch64 it is assumed), which none of our
// kernels do.
bool has_float16_arithmetic();

}  // namespace mlp_ext::cpu
