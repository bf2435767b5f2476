"""The table of image formats: file extensions, first bytes, and whether gmd_ray decodes them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePosixPath

_RAW = "develop it to TIFF or PNG"
_OTHER = "convert it to PNG, TIFF or JPEG"


@dataclass(frozen=True, slots=True)
class Format:
    """One format of image files."""

    name: str
    """Pillow's name for a decoded format; a description for any other."""
    endings: tuple[str, ...]
    """File extensions in lower case, the usual one first."""
    magic: str = ""
    """Regular expression (DOTALL, on Latin-1 text) of the first bytes; empty if they do not identify the format."""
    instead: str = ""
    """Advice for files of a format that is not decoded; empty for decoded formats."""

    @property
    def refusal(self) -> str:
        """The reason why files of this format are refused, on one line."""
        return f"{self.name}, which this program does not decode: {self.instead}"


_ISO = r"....ftyp"  # then the major brand, a version and the compatible brands

READ = (
    Format("PNG", (".png", ".apng"), r"\x89PNG\r\n\x1a\n"),
    Format("JPEG", (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"), r"\xff\xd8\xff"),
    Format("BMP", (".bmp", ".dib"), r"BM"),
    Format("TIFF", (".tif", ".tiff"), r"II[*+]\0|MM\0[*+]"),
    Format("WEBP", (".webp",), r"RIFF....WEBP"),
    Format("GIF", (".gif",), r"GIF8[79]a"),
    Format("AVIF", (".avif", ".avifs"), _ISO + r"(?:avi[fs]|(?:mif1|msf1|miaf)....(?:....){0,8}avi[fs])"),
    Format(
        "JPEG2000",
        (".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"),
        r"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51",
    ),
    Format("PPM", (".ppm", ".pgm", ".pbm", ".pnm"), r"P[1-6][\s#]"),
)
"""The formats that gmd_ray decodes."""

REFUSED = (
    Format("a Canon raw file (CR3)", (".cr3",), _ISO + "crx ", _RAW),
    Format("a Canon raw file (CR2)", (".cr2",), r"II\*\0....CR", _RAW),
    Format("a Canon raw file (CRW)", (".crw",), r"II\x1a\0\0\0HEAPCCDR", _RAW),
    Format("a Fujifilm raw file (RAF)", (".raf",), "FUJIFILMCCD-RAW", _RAW),
    Format("an Olympus raw file (ORF)", (".orf", ".ori"), r"IIR[OS]|MMOR", _RAW),
    Format("a Panasonic or Leica raw file (RW2)", (".rw2", ".rwl"), r"IIU\0", _RAW),
    Format("a Sigma raw file (X3F)", (".x3f",), "FOVb", _RAW),
    Format("a Minolta raw file (MRW)", (".mrw",), r"\0MRM", _RAW),
    # These begin like TIFF, so only their names identify them.
    Format("a Nikon raw file", (".nef", ".nrw"), instead=_RAW),
    Format("a Sony raw file", (".arw", ".srf", ".sr2", ".arq"), instead=_RAW),
    Format("a Pentax raw file", (".pef", ".ptx"), instead=_RAW),
    Format("a Samsung raw file", (".srw",), instead=_RAW),
    Format("a DNG raw file", (".dng", ".gpr"), instead=_RAW),
    Format("a Hasselblad raw file", (".3fr", ".fff"), instead=_RAW),
    Format("a Phase One raw file", (".iiq", ".cap", ".eip"), instead=_RAW),
    Format("a Leaf or Mamiya raw file", (".mos", ".mef"), instead=_RAW),
    Format("an Epson raw file", (".erf",), instead=_RAW),
    Format("a Kodak raw file", (".kdc", ".dcr", ".dcs", ".k25", ".drf"), instead=_RAW),
    Format("a Casio raw file", (".bay",), instead=_RAW),
    Format("a raw file", (".raw", ".rwz"), instead=_RAW),
    Format(
        "a HEIC photo",
        (".heic", ".heif", ".hif", ".heics", ".heifs", ".avci", ".avcs"),
        _ISO + r"(?:he[iv][cxms]|mif1|msf1|avc[is])",
        _OTHER,
    ),
    Format("a JPEG XL picture", (".jxl",), r"\xff\x0a|\0\0\0\x0cJXL \r\n\x87\n", _OTHER),
    Format("a JPEG XR picture", (".jxr", ".wdp", ".hdp"), r"II\xbc", _OTHER),
    Format("an OpenEXR picture", (".exr",), r"\x76\x2f\x31\x01", _OTHER),
    Format("a Radiance HDR picture", (".hdr",), r"#\?(?:RADIANCE|RGBE)", _OTHER),
    Format("a portable float map", (".pfm",), r"P[Ff]\s", _OTHER),
    Format("a Photoshop document", (".psd", ".psb"), "8BPS", _OTHER),
    Format("a Targa picture", (".tga",), instead=_OTHER),
    Format("a QOI picture", (".qoi",), "qoif", _OTHER),
    Format("a BPG picture", (".bpg",), r"BPG\xfb", _OTHER),
)
"""Photo formats that users may expect to work. Their files are listed and reported as failed, with the reason.
Documents, drawings and icons are not included."""

DECODED = frozenset(ending for known in READ for ending in known.endings)
"""Extensions of decoded formats."""
NOT_DECODED = {ending: known for known in REFUSED for ending in known.endings}
"""Extension -> format of files that are listed and become failed rows. They are skipped if a decodable file of the same
stem lies beside them, as cameras that save raw and JPEG write both."""
EXTENSIONS = frozenset({*DECODED, *NOT_DECODED})
"""Extensions of all files that count as images."""

_MAGIC = [(re.compile(known.magic.encode("latin-1"), re.DOTALL), known) for known in (*REFUSED, *READ) if known.magic]
# AVIF is tried first: an AVIF file may name HEIF's general brand before its own.
_MAGIC.sort(key=lambda entry: entry[1].name != "AVIF")


def sniff(data: bytes) -> Format | None:
    """Identify a format by the first bytes of a file; None if it is not in the table."""
    return next((known for magic, known in _MAGIC if magic.match(data[:64])), None)


def ending(data: bytes, known: Format) -> str:
    """Return the usual extension of a file with these bytes, whose format `sniff` returned."""
    return {b"P1": ".pbm", b"P4": ".pbm", b"P2": ".pgm", b"P5": ".pgm"}.get(data[:2], known.endings[0])


def refusal_by_name(name: str) -> str | None:
    """Return the reason why files of this extension are refused; None for others.

    Their content is not considered: Pillow would open the small preview in a raw file.
    """
    known = NOT_DECODED.get(PurePosixPath(name).suffix.lower())
    return known.refusal if known else None
