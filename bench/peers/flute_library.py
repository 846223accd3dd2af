"""libflute through its C ABI: the structs and calls of include/flute/flute.h that a multiply on a GPU needs."""

import ctypes
from ctypes import POINTER, Structure, byref, c_char_p, c_int32, c_int64, c_size_t, c_void_p, sizeof

ABI_VERSION = 1
F16, CUDA = 1, 1
NO_DEPENDENT_LAUNCH = 1


class Device(Structure):
    _fields_ = [("kind", c_int32), ("index", c_int32)]


class PackedView(Structure):
    _fields_ = [
        ("size", c_size_t),
        ("n", c_int64),
        ("k", c_int64),
        ("group_size", c_int64),
        ("bits", c_int32),
        ("scale_dtype", c_int32),
        ("codes", c_void_p),
        ("scales", c_void_p),
        ("offsets", c_void_p),
        ("codebook", c_void_p),
        ("codebook_rows", c_int64),
    ]


class GemmArgs(Structure):
    _fields_ = [
        ("size", c_size_t),
        ("m", c_int64),
        ("x", c_void_p),
        ("ldx", c_int64),
        ("y", c_void_p),
        ("ldy", c_int64),
        ("bias", c_void_p),
        ("dtype", c_int32),
        ("flags", c_int32),
        ("threads", c_void_p),
        ("stream", c_void_p),
        ("workspace", c_void_p),
        ("workspace_bytes", c_size_t),
    ]


class Library:
    """Loads libflute from `path`. Calls raise RuntimeError with the library's message."""

    def __init__(self, path):
        self._library = ctypes.CDLL(path)
        self._library.flute_version.restype = c_char_p
        self._library.flute_last_error_message.restype = c_char_p
        found = self._library.flute_abi_version()
        if found != ABI_VERSION:
            raise RuntimeError(f"{path}: expected ABI version {ABI_VERSION}, found {found}")
        self._library.flute_matrix_create.argtypes = [
            Device, c_int32, POINTER(POINTER(PackedView)), c_int32, c_void_p, POINTER(c_void_p),
        ]  # fmt: skip
        self._library.flute_matrix_destroy.argtypes = [c_void_p]
        self._library.flute_matrix_destroy.restype = None
        self._library.flute_gemm.argtypes = [c_void_p, POINTER(GemmArgs)]
        self._library.flute_gemm_workspace_bytes.argtypes = [c_void_p, c_int64, c_int32, POINTER(c_size_t)]
        self._library.flute_workspace_init.argtypes = [Device, c_void_p, c_size_t, c_void_p]

    def version(self):
        return self._library.flute_version().decode()

    def call(self, name, *arguments):
        if getattr(self._library, name)(*arguments) != 0:
            raise RuntimeError(self._library.flute_last_error_message().decode())

    def destroy(self, matrix):
        self._library.flute_matrix_destroy(matrix)


class Matrix:
    """A device matrix of fp16 activations. codes: int32 [n, k * bits / 32], scales: fp16 [n, groups], both on the GPU
    and complete; codebook: fp32 [2^bits]."""

    def __init__(self, library, codes, scales, codebook, bits, group_size):
        self._library = library
        view = PackedView(
            size=sizeof(PackedView),
            n=codes.shape[0],
            k=codes.shape[1] * 32 // bits,
            group_size=group_size,
            bits=bits,
            scale_dtype=F16,
            codes=codes.data_ptr(),
            scales=scales.data_ptr(),
            codebook=codebook.data_ptr(),
            codebook_rows=1,
        )
        segments = (POINTER(PackedView) * 1)(ctypes.pointer(view))
        self._handle = c_void_p()
        device = Device(CUDA, codes.device.index)
        library.call("flute_matrix_create", device, F16, segments, 1, None, byref(self._handle))

    def __del__(self):
        if self._handle:
            self._library.destroy(self._handle)

    def workspace_bytes(self, m):
        result = c_size_t()
        self._library.call("flute_gemm_workspace_bytes", self._handle, m, F16, byref(result))
        return result.value

    def multiply(self, x, y, workspace, stream, flags):
        """y = x * W^T on `stream`: fp16 tensors, x [m, k], y [m, n]; `workspace` of uint8, made ready before."""
        arguments = GemmArgs(
            size=sizeof(GemmArgs),
            m=x.shape[0],
            x=x.data_ptr(),
            y=y.data_ptr(),
            dtype=F16,
            flags=flags,
            stream=stream.cuda_stream,
            workspace=workspace.data_ptr(),
            workspace_bytes=workspace.numel(),
        )
        self._library.call("flute_gemm", self._handle, byref(arguments))


def init_workspace(library, workspace, stream):
    device = Device(CUDA, workspace.device.index)
    library.call("flute_workspace_init", device, workspace.data_ptr(), workspace.numel(), stream.cuda_stream)
