"""Run pytest with the sanitized build first on the path, whatever editable installation the environment holds."""

import sys

import pytest

if __name__ == "__main__":
    site, *arguments = sys.argv[1:]
    sys.meta_path = [finder for finder in sys.meta_path if not type(finder).__name__.startswith("ScikitBuild")]
    sys.path.insert(0, site)
    import zoomzero_kernels

    if not str(zoomzero_kernels.__file__).startswith(site):
        sys.exit(f"the sanitized build in {site} must be under test, got {zoomzero_kernels.__file__}")
    sys.exit(pytest.main(arguments))
