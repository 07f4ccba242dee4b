"""DICOM and NIfTI: shown as they are meant to be, stacked in order, refused by name."""

import pathlib
import sys
import warnings

import numpy as np
import pytest

from sftjax.data import Processor, Table, UnreadableImage, decode, load_images
from sftjax.data.dicom import read_dicom, read_series
from sftjax.data.volumes import read_volume, slices

pydicom = pytest.importorskip("pydicom")
nibabel = pytest.importorskip("nibabel")

sys.path.insert(0, str(pathlib.Path(__file__).parent))

from dicom_writer import STORED, write  # noqa: E402


def test_window_rescale_and_photometric_interpretation(tmp_path):
    path = write(tmp_path / "a.dcm", RescaleSlope=2, RescaleIntercept=-1024)
    units = STORED.astype(float) * 2 - 1024
    full = read_dicom(path)
    expected = (units - units.min()) / np.ptp(units) * 65535
    np.testing.assert_allclose(full, expected, atol=0.51)
    # The formula of the standard for a window of centre 40 and width 400.
    shown = np.clip((units - 39.5) / 399 + 0.5, 0, 1) * 65535
    np.testing.assert_allclose(read_dicom(path, window=(40, 400)), shown, atol=0.51)
    own = write(tmp_path / "b.dcm", RescaleSlope=2, RescaleIntercept=-1024,
                WindowCenter=[40, 900], WindowWidth=[400, 20])  # fmt: skip
    np.testing.assert_array_equal(read_dicom(own), read_dicom(path, window=(40, 400)))
    inverse = write(tmp_path / "c.dcm", PhotometricInterpretation="MONOCHROME1",
                    RescaleSlope=2, RescaleIntercept=-1024)  # fmt: skip
    np.testing.assert_allclose(read_dicom(inverse).astype(int), 65535 - full.astype(int), atol=1)
    assert decode(path).shape == (3, 4, 3)


def test_dicom_that_cannot_be_shown_is_named(tmp_path):
    report = write(tmp_path / "report.dcm", pixels=False, Modality="SR")
    (tmp_path / "text.dcm").write_text("no DICOM")
    (tmp_path / "empty.dcm").write_bytes(b"")
    whole = write(tmp_path / "whole.dcm").read_bytes()
    (tmp_path / "cut.dcm").write_bytes(whole[:-9])
    names = ("report", "text", "empty", "cut", "whole")
    table = Table({"image": [str(tmp_path / f"{name}.dcm") for name in names]}, name="scans")
    with pytest.raises(UnreadableImage, match="4 of 5") as error:
        load_images(table, Processor(resize=(4, 4)))
    for name in names[:4]:
        assert f"{name}.dcm" in str(error.value)
    with pytest.raises(UnreadableImage, match=r"DICOM without pixels \(modality SR\)"):
        read_dicom(report)


@pytest.mark.parametrize(("fields", "damage", "said"), [
    ({"NumberOfFrames": 2, "PixelData": STORED.tobytes() * 2}, {}, "holds 2 frames"),
    ({"WindowCenter": 40, "WindowWidth": 0.5}, {}, "narrower than 1"),
    ({"RescaleSlope": "1.25"}, {b"1.25": b"1.2a"}, "RescaleSlope is '1.2a', which should be a num"),
    ({"RescaleSlope": "1.25"}, {b"1.25": b"1\\25"}, "RescaleSlope is .*, which should be a number"),
    ({"RescaleIntercept": "12e307"}, {b"12e307": b"12e999"}, "RescaleIntercept is"),
    ({"WindowCenter": "1234", "WindowWidth": 9}, {b"1234": b"high"}, "WindowCenter is 'high'"),
])  # fmt: skip
def test_a_field_that_cannot_be_meant_is_named(tmp_path, fields, damage, said):
    path = write(tmp_path / "a.dcm", **fields)
    for whole, damaged in damage.items():
        assert whole in path.read_bytes()
        path.write_bytes(path.read_bytes().replace(whole, damaged))
    with pytest.raises(UnreadableImage, match=f"a.dcm.*{said}"):
        read_dicom(path)


def series(folder, order, **fields):
    folder.mkdir()
    for number, place in enumerate(order):
        stored = np.full((2, 3), place, np.int16)
        write(folder / f"{number}.dcm", stored, ImagePositionPatient=[0, 0, place * 2.5],
              ImageOrientationPatient=[1, 0, 0, 0, 1, 0], PixelSpacing=[0.5, 0.25],
              InstanceNumber=number + 1, **fields)  # fmt: skip
    return folder


def test_a_series_is_stacked_in_the_order_of_the_patient(tmp_path):
    volume = read_series(series(tmp_path / "a", [3, 1, 2, 0]))
    assert volume.values[:, 0, 0].tolist() == [0, 1, 2, 3]
    assert volume.spacing == (2.5, 0.5, 0.25)
    with pytest.raises(UnreadableImage, match="one is missing or there twice"):
        read_series(series(tmp_path / "b", [0, 1, 3, 4]))
    with pytest.raises(UnreadableImage, match="one is missing or there twice"):
        read_series(series(tmp_path / "c", [0, 1, 1]))
    write(tmp_path / "a" / "other.dcm", SeriesInstanceUID="9.9")
    with pytest.raises(UnreadableImage, match=r"2 series; choose one of 1.2.3, 9.9"):
        read_series(tmp_path / "a")
    assert len(read_series(tmp_path / "a", "1.2.3").values) == 4
    with pytest.raises(UnreadableImage, match=r"a has no series 4.5; it has 1.2.3, 9.9"):
        read_series(tmp_path / "a", "4.5")
    with pytest.raises(UnreadableImage, match=r"holds no DICOM file"):
        read_series(tmp_path / "none")
    write(tmp_path / "b" / "wide.dcm", np.zeros((2, 9), np.int16))
    with pytest.raises(UnreadableImage, match=r"their shapes are \(2, 3\), \(2, 9\)"):
        read_series(tmp_path / "b")


def test_real_dicom_files_of_pydicom():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pydicom.data import get_testdata_file

        ct = get_testdata_file("CT_small.dcm", download=False)
        mr = get_testdata_file("MR_small.dcm", download=False)
        colour = get_testdata_file("SC_rgb_small_odd.dcm", download=False)
    assert read_dicom(ct).shape == (128, 128)
    assert read_dicom(ct).std() > 1000
    assert decode(mr).shape == (64, 64, 3)
    assert read_dicom(colour).dtype == np.uint8
    assert read_dicom(colour).shape == (3, 3, 3)


def test_nifti_is_turned_to_one_orientation(tmp_path):
    values = np.arange(2 * 3 * 4, dtype=np.int16).reshape(2, 3, 4)
    nibabel.save(nibabel.Nifti1Image(values, np.diag([1, 2, 3, 1.0])), tmp_path / "a.nii.gz")
    turned = nibabel.Nifti1Image(values[::-1], np.array(
        [[-1.0, 0, 0, 1], [0, 2, 0, 0], [0, 0, 3, 0], [0, 0, 0, 1]]))  # fmt: skip
    nibabel.save(turned, tmp_path / "b.nii")
    volume = read_volume(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(volume.values, values.transpose(2, 1, 0))
    np.testing.assert_array_equal(read_volume(tmp_path / "b.nii").values, volume.values)
    assert volume.spacing == (3, 2, 1)
    planes = slices(tmp_path / "a.nii.gz", "coronal", every=2, window=(0, 23))
    assert [plane.place for plane in planes] == [0, 2]
    images = load_images(Table({"image": planes}, name="t1"), Processor(resize=(4, 2)))
    expected = np.round(volume.values[:, 2, :] / 23 * 65535)
    np.testing.assert_array_equal(images.pixels[1, ..., 0], expected)
    (tmp_path / "c.nii").write_bytes(b"no NIfTI")
    with pytest.raises(UnreadableImage, match=r"c.nii cannot be read as NIfTI"):
        read_volume(tmp_path / "c.nii")
