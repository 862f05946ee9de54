"""How each public cohort is laid out: the columns of its tables and the paths of its T1 scans."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import nibabel

from data_preprocessing.public.longitudinal import read_adni, read_oasis3
from data_preprocessing.public.tables import MALE_1_FEMALE_2, Kind, Listing, People, Row
from data_preprocessing.public.unoriented import read_oasis2_raw, read_quasiraw, read_t88
from utils.files import image_stem
from utils.people.bids_names import BIDS_LABEL

NIFTI = r"\.nii(?:\.gz)?$"


@dataclass(frozen=True)
class Scan:
    """A scan on the disk, and what its path says.

    Attributes:
        key: under which the tables know it.
        session: of the person; empty where the release has one session per person.
        day: of the scan, as in tables.Subject.
        image: its number in the archive (ADNI).
    """

    path: Path
    key: str
    person: str
    session: str = ""
    site: str = ""
    day: int | None = None
    image: str = ""


@dataclass(frozen=True)
class Release:
    """How a cohort is laid out.

    Attributes:
        tables: which tables the user must give, in words.
        read: reads the tables.
        pattern: regular expression for the path of a T1 scan, with a group `key`, and where the
            path has them `person`, `session`, `site`, `day`, `date` and `image`.
        example: a path that `pattern` matches.
        name: of a scan in the output; no two scans get the same.
        by_suffix: what reads a volume that must be converted, by the suffix of its file.
        groups: that get a folder each; without, all scans go to one folder `scans`.
    """

    tables: str
    read: Callable[[Sequence[Path]], Listing]
    pattern: str
    example: str
    name: Callable[[Scan], str] = lambda scan: image_stem(scan.path.name)
    by_suffix: tuple[tuple[str, Callable[[Path], nibabel.Nifti1Image]], ...] = ()
    groups: tuple[str, ...] = ()


def recognise(paths: Iterable[Path], release: Release, *, days: dict[str, int]) -> list[Scan]:
    """The T1 scans of the release among `paths`; files with other names are left out.

    Args:
        paths: of files of any kind.
        release: whose naming is looked for.
        days: of scans, by image, from the tables; preferred to the day in the path.
    """
    scans = []
    for path in paths:
        match = re.search(release.pattern, path.absolute().as_posix(), re.IGNORECASE)
        if not match:
            continue
        found = match.groupdict(default="")
        day = int(found["day"]) if found.get("day") else None
        if found.get("date"):
            day = date.fromisoformat(found["date"]).toordinal()
        image = found.get("image", "").upper()
        day = days.get(image, day)
        session = found.get("session", "")
        if "date" in found and day is not None:
            session = f"{date.fromordinal(day):%Y%m%d}"
        person = found.get("person") or found["key"]
        site = found.get("site", "")
        scans.append(Scan(path, found["key"], person, session, site, day, image))
    return scans


def _oasis1_group(row: Row) -> str:
    """A second session (MR2) within 90 days is a retest; a CDR above 0 is dementia.

    CDR is blank for the young, who were not assessed: they are healthy by recruitment.
    """
    if not row.cells["id"].endswith("_MR1"):
        return "retest"
    return "dementia" if row.number("cdr") else "healthy"


def _oasis2_group(row: Row) -> str:
    """Such as `Converted, CDR 0`: the group is the person's over the years, CDR the session's."""
    rating = row.number("cdr")
    return ", ".join(
        filter(None, (row.cells["group"], "" if rating is None else f"CDR {rating:g}"))
    )


RELEASES = {
    "oasis1": Release(
        tables="oasis_cross-sectional.csv or .xlsx",
        read=People(
            # Without the column CDR everybody would be healthy, so it is needed.
            Kind(
                "oasis_cross-sectional.csv",
                {"id": "id scan_id mri_id", "sex": "m_f sex", "age": "age", "cdr": "cdr"},
            ),
            group=_oasis1_group,
        ).read,
        # n3 to n6: the image is the mean of so many raw scans.
        pattern=r"/(?P<key>(?P<person>OAS1_\d{4})_(?P<session>MR\d))_mpr_n\d_anon_111_t88_masked_gfc"
        r"\.img$",
        example="disc1/OAS1_0001_MR1/PROCESSED/MPRAGE/T88_111/"
        "OAS1_0001_MR1_mpr_n4_anon_111_t88_masked_gfc.img",
        name=lambda scan: scan.key,
        by_suffix=((".img", read_t88),),
        groups=("healthy", "retest", "dementia"),
    ),
    "oasis2": Release(
        tables="oasis_longitudinal_demographics.xlsx",
        read=People(
            Kind(
                "oasis_longitudinal_demographics.xlsx",
                {"id": "mri_id", "sex": "m_f sex", "age": "age"},
                {"group": "group", "cdr": "cdr"},
            ),
            group=_oasis2_group,
        ).read,
        pattern=r"/(?P<key>(?P<person>OAS2_\d{4})_(?P<session>MR\d+))/RAW/mpr-\d\.(?:nifti\.)?img$",
        example="OAS2_RAW_PART1/OAS2_0001_MR1/RAW/mpr-1.nifti.img",
        name=lambda scan: scan.key,
        by_suffix=((".img", read_oasis2_raw),),
    ),
    "oasis3": Release(
        tables="OASIS3_demographics.csv, and OASIS3_UDSb4_cdr.csv for groups",
        read=read_oasis3,
        pattern=r"/sub-(?P<key>OAS3\d{4})_sess?-(?P<session>d(?P<day>\d+))(?:_[^/]*)?_T1w" + NIFTI,
        example="OAS30001_MR_d0129/anat2/sub-OAS30001_ses-d0129_run-01_T1w.nii.gz",
        name=lambda scan: f"{scan.key}_MR_{scan.session}",
    ),
    "adni": Release(
        tables="ADNIMERGE.csv and the .csv of the IDA download (one is enough, both are better)",
        read=read_adni,
        pattern=r"/(?:(?P<date>\d{4}-\d\d-\d\d)_[\d_.]+/[SI]\d+/)?ADNI_(?P<key>\d{3}_S_\d{4,5})_MR_"
        r"(?!.*mask)[^/]*(?:MP-?RAGE|MPR|SPGR|MT1)[^/]*_(?P<image>I\d+)" + NIFTI,
        example="002_S_0295/MP-RAGE/2006-04-18_08_20_30.0/I13722/"
        "ADNI_002_S_0295_MR_MP-RAGE_br_raw_20060418193713091_1_S13408_I13722.nii",
        name=lambda scan: f"sub-ADNI{scan.key.replace('_', '')}_ses-{scan.session}_{scan.image}",
    ),
    "pac2019": Release(
        tables="PAC2019_BrainAge_Training.csv",
        # The table of the test scans has no ages; those are in PAC2019_BrainAge_Test_age.csv.
        read=People(
            Kind(
                "PAC2019_BrainAge_Training.csv",
                {"id": "subject_id id", "age": "age", "sex": "gender sex"},
                {"site": "site"},
            )
        ).read,
        pattern=r"/(?P<key>sub\d+)(?:_raw|_t1w?)?" + NIFTI,
        example="raw/sub0.nii.gz",
        name=lambda scan: scan.key,
    ),
    "ixi": Release(
        tables="IXI.xls",
        # Some people have two rows, mostly a full one and one with zeros. What the rows agree on is
        # taken; people with two ages or sexes are marked. A SEX_ID of 0 is unknown.
        read=People(
            Kind(
                "IXI.xls",
                {
                    "id": "ixi_id participant_id scan id",
                    "age": "age",
                    "sex": "sex_id_1_m_2_f sex_id sex",
                },
            ),
            key=r"^(?:IXI)?0*(\d+)",
            codes={**MALE_1_FEMALE_2, "0": ""},
        ).read,
        pattern=r"/IXI0*(?P<key>\d+)-(?P<site>Guys|HH|IOP)-\d+-T1(?:_\w+)?" + NIFTI,
        example="IXI002-Guys-0828-T1.nii.gz",
    ),
    "camcan": Release(
        tables="participants.tsv, or standard_data.csv",
        read=People(
            Kind(
                "participants.tsv of Cam-CAN",
                {
                    "id": "participant_id ccid",
                    "age": "age",
                    "sex": "sex gender gender_text gender_code",
                },
            ),
            key=r"^(?:sub-)?(CC\d+)",
            codes=MALE_1_FEMALE_2,
        ).read,
        pattern=r"/sub-(?P<key>CC\d+)(?:_[^/]*)?_T1w" + NIFTI,
        example="sub-CC110033/anat/sub-CC110033_T1w.nii.gz",
    ),
    "openbhb": Release(
        tables="participants.tsv",
        read=People(
            Kind(
                "participants.tsv of OpenBHB",
                {"id": "participant_id", "age": "age", "sex": "sex"},
                {"site": "site", "group": "diagnosis"},
            ),
            key=r"^(?:sub-)?(\d+)",
        ).read,
        pattern=r"/sub-(?P<key>\d+)(?:_ses-\w+?)?(?:_run-\d+)?"
        rf"(?:_preproc-quasiraw_T1w\.npy$|_T1w{NIFTI})",
        example="sub-100053248969_preproc-quasiraw_T1w.npy",
        name=lambda scan: image_stem(scan.path.name).removesuffix(".npy"),
        by_suffix=((".npy", read_quasiraw),),
    ),
    "bids": Release(
        tables="participants.tsv",
        read=None,
        pattern=rf"/sub-(?P<key>{BIDS_LABEL})(?:_ses-(?P<session>{BIDS_LABEL}))?(?:_[^/]*)?_T1w{NIFTI}",
        example="sub-01/anat/sub-01_T1w.nii.gz",
    ),
}
