"""Which epilogues cuBLASLt offers for which arithmetic: asked of its heuristic, nothing is run.

What fuses a layer's passes: RELU_AUX_BIAS keeps ReLU's mask, DRELU_BGRAD applies it to dX and sums
the bias gradient, BGRADB sums the gradient of the bias along with dW. Documented for 16-bit types;
whether float32 has them is one of the first questions to a GPU.
"""

import ctypes
from ctypes import byref, c_float, c_int32, c_int64, c_size_t, c_uint64, c_void_p, sizeof
from pathlib import Path

# cublasLt.h, cublas_api.h, library_types.h
EPILOGUES = {
    "RELU_BIAS": 2 | 4,
    "RELU_AUX_BIAS": 2 | 128 | 4,
    "DRELU_BGRAD": 8 | 128 | 16,
    "BGRADB": 512,
}
COMPUTE_32F, COMPUTE_32F_FAST_TF32 = 68, 77
R_32F, R_16F, R_16BF = 0, 2, 14
ARITHMETIC = {
    "float32": (R_32F, COMPUTE_32F),
    "TF32": (R_32F, COMPUTE_32F_FAST_TF32),
    "fp16": (R_16F, COMPUTE_32F),
    "bf16": (R_16BF, COMPUTE_32F),
}
_TRANSA, _TRANSB, _EPILOGUE, _BIAS, _AUX, _AUX_LD = 3, 4, 7, 8, 11, 12
_MAX_WORKSPACE = 1


class Lacking(Exception):
    """The library is not there, or it refused a call that should have worked."""


class _Heuristic(ctypes.Structure):
    _fields_ = [
        ("algo", c_uint64 * 8), ("workspace", c_size_t), ("state", c_int32), ("waves", c_float),
        ("reserved", c_int32 * 4),
    ]  # fmt: skip


def library() -> ctypes.CDLL:
    """The one that torch has loaded, wherever it came from."""
    try:
        maps = Path("/proc/self/maps").read_text()
    except OSError as error:
        raise Lacking(str(error)) from None
    paths = {line.split()[-1] for line in maps.splitlines() if "libcublasLt.so" in line}
    if not paths:
        raise Lacking("torch has loaded no libcublasLt")
    return ctypes.CDLL(sorted(paths)[0])


def _done(name: str, status: int) -> None:
    if status != 0:
        raise Lacking(f"{name} returned status {status}")


class Questioner:
    def __init__(self) -> None:
        self._lib = library()
        self._handle = c_void_p()
        self._call("cublasLtCreate", byref(self._handle))

    def _call(self, name: str, *arguments) -> None:
        _done(name, getattr(self._lib, name)(*arguments))

    def close(self) -> None:
        self._call("cublasLtDestroy", self._handle)

    def _layout(self, kind: int, size: int) -> c_void_p:
        layout = c_void_p()
        sizes = c_uint64(size), c_uint64(size), c_int64(size)
        self._call("cublasLtMatrixLayoutCreate", byref(layout), kind, *sizes)
        return layout

    def offers(self, epilogue: str, arithmetic: str, size: int = 1024) -> bool:
        """Whether the heuristic has an algorithm for a square product, transposed as in a forward
        pass (TN), or for the gradients as there (NN, NT)."""
        kind, compute = ARITHMETIC[arithmetic]
        description, preference = c_void_p(), c_void_p()
        self._call("cublasLtMatmulDescCreate", byref(description), compute, R_32F)
        backward = epilogue in ("DRELU_BGRAD", "BGRADB")
        # The heuristic looks at the pointers' alignment only.
        attributes = {
            _TRANSA: c_int32(0 if backward else 1),
            _TRANSB: c_int32(1 if epilogue == "BGRADB" else 0),
            _EPILOGUE: c_int32(EPILOGUES[epilogue]),
            _BIAS: c_void_p(1 << 20),
        }
        if "AUX" in epilogue or epilogue == "DRELU_BGRAD":
            attributes |= {_AUX: c_void_p(1 << 20), _AUX_LD: c_int64(size)}
        layouts = [self._layout(kind, size) for _ in range(4)]
        try:
            for name, value in attributes.items():
                arguments = description, name, byref(value), c_size_t(sizeof(value))
                self._call("cublasLtMatmulDescSetAttribute", *arguments)
            self._call("cublasLtMatmulPreferenceCreate", byref(preference))
            workspace = c_size_t(32 << 20)
            arguments = preference, _MAX_WORKSPACE, byref(workspace), c_size_t(sizeof(workspace))
            self._call("cublasLtMatmulPreferenceSetAttribute", *arguments)
            found, result = c_int32(), _Heuristic()
            # Not by _call: "not supported" is an answer.
            status = self._lib.cublasLtMatmulAlgoGetHeuristic(
                self._handle, description, *layouts, preference, 1, byref(result), byref(found)
            )
            return status == 0 and found.value > 0 and result.state == 0
        finally:
            for layout in layouts:
                self._lib.cublasLtMatrixLayoutDestroy(layout)
            self._lib.cublasLtMatmulDescDestroy(description)
            if preference:
                self._lib.cublasLtMatmulPreferenceDestroy(preference)


def offered() -> dict[str, list[str]]:
    """Arithmetic -> the epilogues that there are; Lacking if it cannot be asked."""
    questioner = Questioner()
    try:
        return {a: [e for e in EPILOGUES if questioner.offers(e, a)] for a in ARITHMETIC}
    finally:
        questioner.close()
