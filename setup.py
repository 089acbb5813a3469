"""What pyproject.toml cannot say: which of the listed packages stay out of a wheel."""

from setuptools import setup
from setuptools.command.build_py import build_py

SCRIPTS = {("lcmem_onnx", "noxfile"), ("lcmem_onnx", "setup")}
"""Scripts of the repository's root, which is the package's folder: they are not part of the package."""
CHECKOUT_ONLY = ("lcmem_onnx.models.bundled", "lcmem_onnx.models.synthetic")
"""The recipe of the model that ships, and drawn training images: importable in a checkout, not in a wheel."""


class BuildPy(build_py):
    """Leaves `CHECKOUT_ONLY` out, and the modules of `export` to `lcmem_onnx.export`.

    The global package `export` exists to make `python -m export` work after installation: only its `__init__` and `__main__` are
    installed under both names.
    """

    def finalize_options(self):
        super().finalize_options()
        if not self.editable_mode:
            self.packages = [name for name in self.packages or () if not name.startswith(CHECKOUT_ONLY)]

    def find_package_modules(self, package, package_dir):
        modules = super().find_package_modules(package, package_dir)
        modules = [found for found in modules if tuple(found[:2]) not in SCRIPTS]
        return [found for found in modules if package != "export" or found[1] in ("__init__", "__main__")]


setup(cmdclass={"build_py": BuildPy})
