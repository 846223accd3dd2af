"""The package and its library: whether they agree on the C ABI, and what happens where there is none."""

import ctypes
import os
import re
import subprocess
import sys

import checkpoints
import flute
import pytest
from flute import _library

HEADER = re.sub(r"/\*.*?\*/", "", (checkpoints.ROOT / "include/flute/flute.h").read_text(), flags=re.S)
SIZES = {"size_t": 8, "int64_t": 8, "int32_t": 4, "float": 4, "flute_dtype": 4, "flute_status": 4, "flute_device": 8}
STRUCTS = {
    "flute_packed_view": _library.PackedView,
    "flute_quantize_args": _library.QuantizeArgs,
    "flute_gemm_args": _library.GemmArgs,
    "flute_tiled_view": _library.TiledView,
    "flute_device": _library.Device,
}


def expect_same_type(found, declared, what):
    """The ctypes type `found` passes what C declares."""
    if "*" in declared or declared.rstrip().endswith("]"):
        assert ctypes.sizeof(found) == 8 and found not in (ctypes.c_int64, ctypes.c_size_t), what
        return
    name = declared.replace("const", "").split()[0]
    assert ctypes.sizeof(found) == SIZES[name], what
    assert (found is ctypes.c_float) == (name == "float"), what


@pytest.mark.parametrize("name", STRUCTS)
def test_structs(name):
    body = re.search(rf"typedef struct {name} {{(.*?)}} {name};", HEADER, re.S)[1]
    declared = []
    for line in filter(None, map(str.strip, body.split(";"))):
        kind, names, count = re.fullmatch(r"(.*?)((?:\w+, )*\w+)(\[\d+\])?", line, re.S).groups(default="")
        kind += count
        declared += [(field, kind) for field in names.split(", ")]
    fields = STRUCTS[name]._fields_
    assert [field[0] for field in fields] == [field for field, _ in declared]
    for (field, found), (_, kind) in zip(fields, declared, strict=True):
        if kind.endswith("]"):
            kind, count = kind.rstrip("]").split("[")
            assert found._length_ == int(count), f"{name}.{field}"
            found = found._type_
        expect_same_type(found, kind, f"{name}.{field}")


@pytest.mark.parametrize("name", _library.FUNCTIONS)
def test_functions(name):
    result, arguments = re.search(rf"([\w* ]+?)\b{name}\((.*?)\);", HEADER, re.S).groups()
    found_result, found = _library.FUNCTIONS[name]
    assert (found_result is None) == (result.strip() == "void")
    if found_result is not None:
        expect_same_type(found_result, result, name)
    declared = [] if arguments == "void" else re.split(r",\s*", arguments)
    assert len(found) == len(declared)
    for kind, argument in zip(found, declared, strict=True):
        expect_same_type(kind, argument, f"{name}: {argument}")


def test_the_version_of_the_abi():
    assert int(re.search(r"#define FLUTE_ABI_VERSION (\d+)", HEADER)[1]) == _library.ABI_VERSION


def python(code, **environment):
    paths = os.pathsep.join(path for path in sys.path if path)
    environment = {**os.environ, "PYTHONPATH": paths, **environment}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)


def test_no_library(tmp_path):
    missing, other = tmp_path / "libnone.so", tmp_path / "libother.so"
    other.write_text("no library")
    for path, message in ((missing, "found no file"), (other, "libother.so")):
        done = python("import flute", FLUTE_LIBRARY=str(path))
        last = done.stderr.splitlines()[-1]
        assert done.returncode == 1 and last.startswith("ImportError: flute: ") and message in last
        assert str(path) in last


def test_import_needs_numpy_alone():
    done = python("import sys, flute; print(sorted({'torch', 'transformers', 'ml_dtypes'} & set(sys.modules)))")
    assert done.stdout == "[]\n", done.stderr


def test_everything_public_is_there_and_described():
    assert (
        flute.__version__
        == re.search(r"project\(flute VERSION ([\d.]+)", checkpoints.ROOT.joinpath("CMakeLists.txt").read_text())[1]
    )
    for name in flute.__all__:
        public = getattr(flute, name)
        if callable(public):
            assert public.__doc__, name
    for name, public in vars(flute.QuantizedTensor).items():
        if not name.startswith("_") and (callable(public) or isinstance(public, property | classmethod)):
            assert public.__doc__, name
