// The types of CUDA's run time that launchers take and return, for headers that a .cpp includes.
#pragma once

#if defined(MLP_EXT_ON_HOST)
#include "simt_host.h"
#else
#include <cuda_runtime_api.h>
#endif
