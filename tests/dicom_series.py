"""Writes a volume as a DICOM series, one file a slice, as a scanner would."""

from pathlib import Path

import nibabel
import numpy as np
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid


def write_series(
    image: nibabel.Nifti1Image,
    folder: Path,
    *,
    series: int = 1,
    name: str = "slice",
    form: str = "whole",
    **header: object,
) -> None:
    """Writes axial slices of an unrotated image.

    Args:
        image: to write.
        folder: is made when missing.
        series: its number.
        name: what the files' names begin with.
        form: `whole`; `meta`: without preamble; `explicit` and `implicit`: the data set alone,
            without preamble and meta header.
        header: further elements, such as PatientAge="045Y".

    DICOM's rows run along its patient axes in LPS mm; files are named in an order that is not the
    slices', as it happens.
    """
    folder.mkdir(parents=True, exist_ok=True)
    image = nibabel.as_closest_canonical(image)
    voxels = np.asarray(image.dataobj)
    voxels = np.round(voxels * (4000 / voxels.max())).astype(np.uint16)
    # To LPS: the first axis then runs to the left, the second to the back.
    voxels = voxels[::-1, ::-1]
    sizes = np.linalg.norm(image.affine[:3, :3], axis=0)
    corner = image.affine @ [voxels.shape[0] - 1, voxels.shape[1] - 1, 0, 1]
    uids = {"study": generate_uid(), "series": generate_uid(), "frame": generate_uid()}
    for index in range(voxels.shape[2]):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = MRImageStorage
        meta.MediaStorageSOPInstanceUID = generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        slice_ = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
        slice_.SOPClassUID, slice_.SOPInstanceUID = MRImageStorage, meta.MediaStorageSOPInstanceUID
        slice_.StudyInstanceUID, slice_.SeriesInstanceUID = uids["study"], uids["series"]
        slice_.FrameOfReferenceUID, slice_.Modality = uids["frame"], "MR"
        slice_.PatientName, slice_.PatientID = "Nobody", "0"
        slice_.SeriesNumber, slice_.ProtocolName = series, "T1w"
        slice_.ScanningSequence, slice_.SequenceVariant, slice_.MRAcquisitionType = "GR", "SP", "3D"
        slice_.Manufacturer, slice_.InstanceNumber = "SIEMENS", index + 1
        slice_.ImageType = ["ORIGINAL", "PRIMARY", "M"]
        slice_.SliceThickness = float(sizes[2])
        slice_.PixelSpacing = [float(sizes[1]), float(sizes[0])]
        slice_.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        slice_.ImagePositionPatient = [
            -float(corner[0]), -float(corner[1]), float(corner[2] + index * sizes[2]),
        ]  # fmt: skip
        slice_.SamplesPerPixel, slice_.PhotometricInterpretation = 1, "MONOCHROME2"
        slice_.BitsAllocated, slice_.BitsStored, slice_.HighBit = 16, 16, 15
        slice_.PixelRepresentation = 0
        slice_.Rows, slice_.Columns = voxels.shape[1], voxels.shape[0]
        slice_.PixelData = np.ascontiguousarray(voxels[:, :, index].T).tobytes()
        for keyword, value in header.items():
            setattr(slice_, keyword, value)
        path = folder / f"{name}{(index * 7919) % 10007:05d}.dcm"
        if form == "whole":
            slice_.save_as(path, enforce_file_format=True)
            continue
        slice_.preamble = None
        if form == "meta":
            slice_.save_as(path)
        else:
            slice_.file_meta = FileMetaDataset()
            slice_.save_as(path, implicit_vr=form == "implicit", little_endian=True)
