"""Write a small DICOM file, as a scanner would."""

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

STORED = np.arange(12, dtype=np.int16).reshape(3, 4) * 100


def write(path, stored=STORED, *, pixels=True, **fields):
    """Write a plane of CT, with more fields or others; return the path."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = Dataset()
    data.file_meta = meta
    data.SOPClassUID, data.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
    data.Modality, data.SeriesInstanceUID = "CT", "1.2.3"
    if pixels:
        data.Rows, data.Columns = stored.shape
        data.BitsAllocated, data.BitsStored, data.HighBit = 16, 16, 15
        data.SamplesPerPixel, data.PixelRepresentation = 1, 1
        data.PhotometricInterpretation = "MONOCHROME2"
        data.PixelData = stored.astype("<i2").tobytes()
    for name, value in fields.items():
        setattr(data, name, value)
    data.save_as(path, enforce_file_format=True)
    return path
