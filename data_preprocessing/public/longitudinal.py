"""Label sheets of OASIS-3 and ADNI, whose people were scanned and examined on many days.

Their tables give the age on one day. The age at a scan follows from the days between, and the
group from the examination nearest to the scan.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from data_preprocessing.public.tables import (
    MALE_1_FEMALE_2,
    NO_ANSWER,
    Kind,
    Listing,
    Row,
    Subject,
    merge,
    read_tables,
)
from utils.cli import raise_all

OASIS3 = {
    "people": Kind(
        "OASIS3_demographics.csv", {"id": "oasisid", "sex": "gender sex", "age": "ageatentry"}
    ),
    "ratings": Kind(
        "OASIS3_UDSb4_cdr.csv", {"id": "oasisid", "day": "days_to_visit", "cdr": "cdrtot"}
    ),
    "old_people": Kind("the subjects of XNAT Central", {"id": "subject", "sex": "m_f"}),
    "old_ratings": Kind(
        "ADRC Clinical Data of XNAT Central",
        {"id": "subject", "label": "adrc_adrcclinicaldata_id", "age": "ageatentry", "cdr": "cdr"},
    ),
}
ADNI = {
    "visits": Kind(
        "ADNIMERGE.csv",
        {"id": "ptid", "age": "age", "sex": "ptgender", "examined": "examdate", "visit": "viscode"},
        {"baseline": "examdate_bl", "diagnosis": "dx", "site": "site"},
    ),
    "images": Kind(
        "the .csv of an IDA download",
        {
            "image": "image_data_id image_id",
            "id": "subject subject_id",
            "sex": "sex",
            "age": "age",
            "scanned": "acq_date study_date",
        },
        {"group": "group research_group"},
    ),
}
IDA_ALONE = (
    "ages are those of the IDA listing: at the scan, but rounded (often to whole years), and "
    "groups are those of enrolment; give ADNIMERGE.csv too for ages to the day"
)


def read_oasis3(paths: Sequence[Path]) -> Listing:
    """OASIS-3: `OASIS3_demographics.csv`, and `OASIS3_UDSb4_cdr.csv` for groups.

    Days count from entry, as in the names of scans, so the age at a scan is AgeatEntry +
    days / 365.25. The group is the CDR of the visit nearest to the scan, within a year. The tables
    of the first release on XNAT Central are read too. GENDER is 1 for male, 2 for female.
    """
    tables, problems = read_tables(paths, OASIS3)
    subjects: dict[str, Subject] = {}
    for row in (row for rows in tables.values() for row in rows):
        subject = Subject(row.where, day=0)
        if "sex" in row.cells:
            subject.sex = row.sex(MALE_1_FEMALE_2)
        if "age" in row.cells:
            subject.age = row.number("age")
        if "label" in row.cells:  # OAS30001_ClinicalData_d0180
            row.cells["day"] = row.cells["label"].rpartition("_d")[2]
        if "cdr" in row.cells:
            day, rating = row.number("day"), row.number("cdr")
            if day is not None and rating is not None:
                subject.visits.append((round(day), f"CDR {rating:g}"))
        merge(subjects, row.cells["id"], subject)
    raise_all(problems)
    return Listing(subjects)


def read_adni(paths: Sequence[Path]) -> Listing:
    """ADNI: `ADNIMERGE.csv`, the listing of an IDA download, or, best, both.

    ADNIMERGE repeats the age at baseline (one decimal) in all rows of a person. The age at a scan
    is AGE + (scan date - baseline date) / 365.25; the group is the DX of the visit nearest to the
    scan, within a year. The Acq Date of the listing is preferred to the date in a scan's path.
    Without ADNIMERGE the listing's own Age is taken, which is at the scan but rounded, and its
    Group, which is that of enrolment.
    """
    tables, problems = read_tables(paths, ADNI)
    subjects: dict[str, Subject] = {}
    days: dict[str, int] = {}
    for row in tables["visits"]:
        merge(subjects, row.cells["id"], _adni_visit(row))
    for row in tables["images"]:
        image = "I" + re.sub(r"\D", "", row.cells["image"])
        scanned = row.day("scanned")
        if scanned is not None:
            days[image] = scanned
        if not tables["visits"]:
            found = Subject(row.where, row.number("age"), row.sex(), row.cells["group"])
            merge(subjects, image, found)
    raise_all(problems)
    for subject in subjects.values():
        # Without the date of baseline, the age there would be taken for the age at the scan.
        if tables["visits"] and subject.day is None:
            subject.doubt = subject.doubt or f"{subject.where}: no baseline date"
    return Listing(subjects, days, () if tables["visits"] else (IDA_ALONE,))


def _adni_visit(row: Row) -> Subject:
    examined, baseline = row.day("examined"), row.day("baseline")
    if baseline is None and row.cells["visit"].lower() == "bl":
        baseline = examined
    diagnosis = row.cells["diagnosis"]
    known = examined is not None and diagnosis.lower() not in NO_ANSWER
    return Subject(
        row.where,
        age=row.number("age"),
        sex=row.sex(),
        site=row.cells["site"],
        day=baseline,
        visits=[(examined, diagnosis)] if known else [],
    )
