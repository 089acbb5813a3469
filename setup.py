"""The one thing that pyproject.toml cannot say: the global package `export` holds only what `python -m export` needs."""

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithoutSecondCopy(build_py):
    """Leaves the modules of `export` to `lcmem_onnx.export`; only `__init__` and `__main__` are installed under both names."""

    def find_package_modules(self, package, package_dir):
        modules = super().find_package_modules(package, package_dir)
        return [found for found in modules if package != "export" or found[1] in ("__init__", "__main__")]


setup(cmdclass={"build_py": BuildWithoutSecondCopy})
