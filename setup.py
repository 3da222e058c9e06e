"""Package metadata; tool settings are in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "codesign" / "__init__.py").read_text(encoding="utf-8"))[1]
ONNX = ["onnx>=1.16"]

setup(
    name="codesign",
    version=VERSION,
    description="Hardware-aware search of quantized networks, and the cost models of the chips that run them",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    keywords=["quantization", "neural architecture search", "accelerator", "energy", "Bit Fusion", "Pareto"],
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: System :: Hardware",
    ],
    python_requires=">=3.10",
    packages=find_packages(include=["hwmodels", "hwmodels.*", "codesign", "codesign.*"]),
    package_data={"hwmodels": ["data/*.csv", "py.typed"]},
    # docs/architecture.md gives the reason for each.
    install_requires=[
        "numpy>=1.26",
        "scipy>=1.11",
        "numba>=0.60",
        "torch>=2.5",
        "torchvision>=0.20",
        "matplotlib>=3.8",
        "scikit-learn>=1.4",
        "moocore>=0.1.3",
        "pymoo>=0.6.2",
        "pydantic>=2.6",
        "pyyaml>=6.0",
        "safetensors>=0.4",
        "threadpoolctl>=3.1",
        "tqdm>=4.66",
    ],
    extras_require={
        "onnx": ONNX,
        "tensorboard": ["tensorboard>=2.14"],
        # onnxscript: torch's own ONNX exporter, which the tests use to compare both importers.
        # dask: searches whose evaluations a cluster runs are tested with a real one.
        "dev": [
            *ONNX,
            "onnxscript",
            "dask[distributed]>=2024.1",
            "hypothesis>=6.100",
            "pandas>=2.1",
            "pytest>=8",
            "ruff>=0.6",
            "mypy>=1.10",
        ],
    },
    entry_points={"console_scripts": ["codesign = codesign.cli:main"]},
)
