"""Metadata of the distribution ``saliency-torch``; the import name is ``saliency``."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'^__version__ = "(.+)"$', (HERE / "saliency" / "__init__.py").read_text("utf-8"), re.MULTILINE)
README = HERE / "README.md"

# Lower bounds without a reason of their own are the oldest releases that the tests were run with.
REQUIRED = [
    "torch>=2.6",  # torch.compiler.set_stance: a compiled model runs eagerly while it is explained
    "torchvision>=0.21",  # the release that goes with torch 2.6
    "typing_extensions>=4.10",  # as torch itself has it: Python 3.10 has no typing.Unpack
    "numpy>=1.24",
    "pillow>=9.4",
]
PLOT = ["matplotlib>=3.8"]  # the first release that ships its types
BENCHMARK = [*PLOT, "tqdm>=4.64", "pycocotools>=2.0.7", "defusedxml>=0.7.1"]
PARITY = ["torchray", "captum>=0.7", "grad-cam>=1.5", "torchcam>=0.4", "zennit>=0.5", "quantus>=0.6", "scipy"]
TEST = [*BENCHMARK, "pytest>=8", "pytest-xdist>=3.5", "hypothesis>=6.100", "selenium>=4.11"]
ZOO = ["timm>=1.0.24", "transformers>=4.50"]
DOCS = [*PLOT, "sphinx>=8.1", "furo>=2024.8", "myst-parser>=4", "sphinx-gallery>=0.19", "docutils>=0.22"]  # MathML
DEV = [*TEST, "ruff>=0.9", "mypy>=1.14"]

setup(
    name="saliency-torch",
    version=VERSION[1],
    description="Saliency methods for PyTorch: every method one call, every gradient method one driver",
    long_description=README.read_text("utf-8") if README.exists() else "",
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.10",
    packages=find_packages(include=["saliency", "saliency.*"]),
    package_data={
        "saliency": ["py.typed"],
        "saliency.scenes": ["*.pt"],
        "saliency.explaining": ["web/*"],
        "saliency.evaluation.report": ["web/*"],
    },
    install_requires=REQUIRED,
    extras_require={
        "plot": PLOT,
        "benchmark": BENCHMARK,
        "zoo": ZOO,
        "docs": DOCS,
        "test": TEST,
        "parity": PARITY,
        "dev": DEV,
    },
    entry_points={"console_scripts": ["saliency = saliency.cli:main"]},
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    zip_safe=False,
)
