"""Make src/langmerge/selection/uriel.tsv out of lang2vec 1.1.2's files.

    pip download --no-deps lang2vec==1.1.2 && unzip lang2vec-1.1.2-py3-none-any.whl
    python scripts/build_typology.py lang2vec/data

The files hold URIEL (Littell et al., 2017), CC BY-SA 4.0, and so is what is made of them. A language is taken if it has a
code of two letters (ISO 639-1), is one of FLORES-200's, or is well known: at least `KNOWN` syntax features observed.
"""

import argparse
import csv
import io
from pathlib import Path

import langcodes

from langmerge.files import replace_text
from langmerge.locales import MASSIVE_LOCALES, typology_code
from langmerge.selection.uriel import COLUMNS, Typology, read_lang2vec, table_lines

KNOWN = 80
OUT = Path(__file__).resolve().parents[1] / "src" / "langmerge" / "selection" / "uriel.tsv"

FLORES = """
ace acm acq aeb afr ajp aka als amh apc arb ars ary arz asm ast awa ayr azb azj bak bam ban bel bem ben bho bjn bod bos
bug bul cat ceb ces cjk ckb crh cym dan deu dik dyu dzo ell eng epo est eus ewe fao fij fin fon fra fur fuv gaz gla gle
glg grn guj hat hau heb hin hne hrv hun hye ibo ilo ind isl ita jav jpn kab kac kam kan kas kat kaz kbp kea khk khm kik
kin kir kmb kmr knc kon kor lao lij lim lin lit lmo ltg ltz lua lug luo lus lvs mag mai mal mar min mkd mlt mni mos mri
mya nld nno nob npi nso nus nya oci ory pag pan pap pbt pes plt pol por prs quy ron run rus sag san sat scn shn sin slk
slv smo sna snd som sot spa srd srp ssw sun swe swh szl tam taq tat tel tgk tgl tha tir tpi tsn tso tuk tum tur twi tzm
uig ukr umb urd uzn vec vie war wol xho ydd yor yue zho zsm zul
"""

HEAD = """\
# Languages of the world, derived from URIEL (Littell, Mortensen, Lin, Kairis, Turner, Levin: "URIEL and lang2vec", EACL
# 2017) as kept by lang2vec 1.1.2. Licence: CC BY-SA 4.0; see uriel.LICENSE. Made by scripts/build_typology.py.
# latitude, longitude: degrees. syntax, phonology, inventory: features as hexadecimal digits, the first in the highest
# bit, filled in by k nearest neighbours where nobody has observed them; *_observed: how many were. family: classes.
"""


def main() -> None:
    """Build the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="lang2vec's data folder")
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    table = read_lang2vec(arguments.data)
    well_known = [c for c, n in zip(table.codes, table.observed["syntax"], strict=True) if n >= KNOWN]
    named = [typology_code(name) for name in (*MASSIVE_LOCALES, *FLORES.split())]
    two_letters = [typology_code(code) for code in _two_letter_codes()]
    wanted = sorted({*named, *two_letters, *well_known} & set(table.codes))
    kept = table.among(wanted)
    text = io.StringIO()
    text.write(HEAD)
    writer = csv.DictWriter(text, COLUMNS, delimiter="\t", lineterminator="\n")
    writer.writeheader()
    writer.writerows(table_lines(_named(kept)))
    replace_text(arguments.out, text.getvalue())
    absent = sorted({*named, *two_letters} - set(table.codes))
    print(f"{len(kept.codes)} languages in {arguments.out}; not in URIEL: {', '.join(absent)}")


def _two_letter_codes() -> list[str]:
    letters = "abcdefghijklmnopqrstuvwxyz"
    codes = [a + b for a in letters for b in letters]
    return [code for code in codes if langcodes.Language.get(code, normalize=False).is_valid()]


def _named(table: Typology) -> Typology:
    names = tuple(langcodes.Language.get(code).language_name() for code in table.codes)
    return Typology(table.codes, names, table.features, table.observed, table.families, table.places)


if __name__ == "__main__":
    main()
