"""Tests of the Python package: the installed one, or else python/flute with the library that `./dev build` makes.

FLUTE_LIBRARY names another library.
"""

import importlib.util
import os
import sys
import tempfile

import checkpoints
import hypothesis
import hypothesis.configuration
import pytest

if importlib.util.find_spec("flute") is None:
    sys.path.insert(0, str(checkpoints.ROOT / "python"))
    os.environ.setdefault("FLUTE_LIBRARY", str(checkpoints.ROOT / "build" / "libflute.so"))
    if not os.path.exists(os.environ["FLUTE_LIBRARY"]):
        pytest.exit(f"no library at {os.environ['FLUTE_LIBRARY']}; build it or set FLUTE_LIBRARY", returncode=1)

# Fresh examples each run. One that fails is printed, with what brings it back; nothing is written beside the sources.
hypothesis.configuration.set_hypothesis_home_dir(tempfile.mkdtemp(prefix="hypothesis-"))
hypothesis.settings.register_profile("flute", deadline=None, database=None, print_blob=True, max_examples=50)
hypothesis.settings.load_profile("flute")
