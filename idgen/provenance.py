"""What a picture says of itself: that a model made it, with which settings, and never from whose photo.

The record is an XMP packet (ISO 16684-1) in the picture file, which every photo tool can show. IPTC's digital
source type tells other programs that the picture was made by a trained model; idgen's own fields stand in a
namespace of their own, each as JSON.
"""

import io
import json
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self
from xml.etree import ElementTree

from PIL import Image, PngImagePlugin, UnidentifiedImageError

from idgen import __version__
from idgen.errors import ConfigError, ImageError
from idgen.storage import write_bytes

# https://cv.iptc.org/newscodes/digitalsourcetype/: "created algorithmically using an AI model"
TRAINED_MODEL = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
MAX_PACKET_BYTES = 1 << 20  # of a packet that is read; a prompt is a thousandth of it
MAX_JPEG_PACKET_BYTES = 65_502  # one APP1 segment less its name: XMP specification part 3, sec. 1.1.3

_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
_QUALITY: dict[str, dict[str, Any]] = {
    "PNG": {},
    "JPEG": {"quality": 95, "subsampling": 0},
    "WEBP": {"quality": 95},
}
_PNG_KEY = "XML:com.adobe.xmp"  # XMP specification part 3, sec. 1.1.5
_NAMESPACES = {
    "x": "adobe:ns:meta/",
    "rdf": "http://www.w3.org/1999/02/22-rdf-syntax-ns#",
    "xmp": "http://ns.adobe.com/xap/1.0/",
    "Iptc4xmpExt": "http://iptc.org/std/Iptc4xmpExt/2008-02-29/",
    "idgen": "urn:idgen:provenance:1#",
}
_X, _RDF, _XMP, _IPTC, _OWN = (f"{{{uri}}}" for uri in _NAMESPACES.values())


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """How a picture was made. It has no place for a reference photo's name, path or vector.

    Attributes:
        prompt: what was asked for.
        negative_prompt: what was to be avoided.
        seed: of this picture alone.
        steps: of denoising.
        guidance_scale: of classifier-free guidance.
        id_scale: strength of the identity, 0 for none.
        model: name or hub id of the base model; of a path only the last part, since folders name people.
        model_hash: sha256 of the base model's weights.
        adapter_hash: sha256 of the adapter file, where there is one.
        lora_hash: sha256 of the LoRA file, where there is one.
        encoder: which encoder described the person, as ``name@sha256[:12]``.
        edit: how the person was edited, "smile=+2", where that was done.
        similarity: measured cosine to the reference, by encoder.
        idgen_version: which idgen made it.
        created: time in UTC, ISO 8601.
    """

    prompt: str
    negative_prompt: str
    seed: int
    steps: int
    guidance_scale: float
    id_scale: float
    model: str
    model_hash: str
    adapter_hash: str | None = None
    lora_hash: str | None = None
    encoder: str | None = None
    edit: str | None = None
    similarity: dict[str, float] = field(default_factory=dict)
    idgen_version: str = __version__
    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    def __post_init__(self) -> None:
        model = self.model.replace("\\", "/").rstrip("/")
        if (
            model.startswith(("/", ".", "~")) or model.count("/") > 1 or "\\" in self.model
        ):  # no hub id: a path
            object.__setattr__(self, "model", model.rpartition("/")[2])

    def to_xmp(self) -> bytes:
        """The record as an XMP packet in UTF-8."""
        for prefix, uri in _NAMESPACES.items():
            ElementTree.register_namespace(prefix, uri)
        root = ElementTree.Element(f"{_X}xmpmeta")
        about = ElementTree.SubElement(ElementTree.SubElement(root, f"{_RDF}RDF"), f"{_RDF}Description")
        about.set(f"{_RDF}about", "")
        about.set(f"{_IPTC}DigitalSourceType", TRAINED_MODEL)
        about.set(f"{_XMP}CreatorTool", f"idgen {self.idgen_version}")
        about.set(f"{_XMP}CreateDate", self.created)
        for name, value in asdict(self).items():
            about.set(f"{_OWN}{name}", _to_json(value))
        body = ElementTree.tostring(root, encoding="unicode")
        return f'<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>{body}<?xpacket end="w"?>'.encode()

    @classmethod
    def from_xmp(cls, packet: bytes) -> Self:
        """Read a packet of `to_xmp`, also after another tool has rewritten it.

        Raises:
            ImageError: if the packet is unsafe or damaged, or holds no record of idgen.
        """
        found = _own_fields(_parse_safely(packet))
        if not found:
            raise ImageError("has a description (XMP), but none that idgen wrote")
        hints = {f.name: f.type for f in fields(cls)}
        values = {name: _from_json(name, text, hints[name]) for name, text in found.items() if name in hints}
        try:
            return cls(**values)
        except TypeError:
            raise ImageError("has a record of idgen with fields missing") from None


def _to_json(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    # JSON escapes control characters; what else XML 1.0 cannot hold (lone surrogates, U+FFFE, U+FFFF) is rare
    is_plain = not any("\ud800" <= c <= "\udfff" or c in "\ufffe\uffff" for c in text)
    return text if is_plain else json.dumps(value)


def _from_json(name: str, text: str, hint: object) -> Any:  # noqa: ANN401 - the type of the field
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        raise ImageError(f"has a record of idgen whose {name} cannot be read") from None
    if hint is float and type(value) is int:
        value = float(value)
    if hint == dict[str, float]:
        fits = isinstance(value, dict) and all(type(v) in (int, float) for v in value.values())
    else:
        fits = isinstance(value, hint) and not isinstance(value, bool)  # pyright: ignore[reportArgumentType]
    if not fits:
        raise ImageError(f"has a record of idgen whose {name} has the wrong type: {text[:80]}")
    return value


def _parse_safely(packet: bytes) -> ElementTree.Element:
    """Parse XML that a stranger wrote: no document type, so no entities that grow or read files."""
    if len(packet) > MAX_PACKET_BYTES:
        raise ImageError(
            f"has a description (XMP) of {len(packet)} bytes; at most {MAX_PACKET_BYTES} are read"
        )
    try:
        text = packet.decode("utf-8")
        if "<!DOCTYPE" in text or "<!ENTITY" in text:
            raise ImageError("has a description (XMP) that declares entities; it is not read")
        return ElementTree.fromstring(text.lstrip("\ufeff").strip().rstrip("\0"))
    except (UnicodeDecodeError, ElementTree.ParseError, ValueError) as error:
        if isinstance(error, ImageError):
            raise
        raise ImageError(f"has a description (XMP) that is damaged: {error}") from None


def _own_fields(root: ElementTree.Element) -> dict[str, str]:
    found: dict[str, str] = {}
    for about in root.iter(f"{_RDF}Description"):
        found |= {k.removeprefix(_OWN): v for k, v in about.attrib.items() if k.startswith(_OWN)}
        found |= {
            e.tag.removeprefix(_OWN): e.text or "" for e in about if e.tag.startswith(_OWN)
        }  # as exiftool writes
    return found


def save_picture(image: Image.Image, path: str | Path, provenance: Provenance) -> None:
    """Write a PNG, JPEG or WebP file with its record, whole or not at all.

    Nothing but the pixels of ``image`` is kept: no EXIF, no comment, no other description that came with it.

    Raises:
        ConfigError: for another file type, or a prompt too long for a JPEG.
        StorageError: if the file cannot be written whole, for example on a full disk.
    """
    path = Path(path)
    write_bytes(path, encoded_picture(image, path.name, provenance))


def encoded_picture(
    image: Image.Image, name: str, provenance: Provenance, *, quality: int | None = None
) -> bytes:
    """The bytes that `save_picture` writes.

    Args:
        image: of which the pixels alone are kept.
        name: of the file; its suffix says the format.
        provenance: the record.
        quality: of JPEG and WebP, from 1 to 100; if not given, 95.

    Raises:
        ConfigError: for another file type, or a prompt too long for a JPEG.
    """
    kind = _FORMATS.get(Path(name).suffix.lower())
    if kind is None:
        raise ConfigError(f"a picture is saved as {', '.join(_FORMATS)}, got {name!r}")
    packet = provenance.to_xmp()
    if kind == "JPEG" and len(packet) > MAX_JPEG_PACKET_BYTES:
        raise ConfigError(
            f"the record of {name} has {len(packet)} bytes, and a JPEG holds {MAX_JPEG_PACKET_BYTES}; "
            "save as PNG or shorten the prompt"
        )
    clean = image.convert("RGB")
    clean.info = {}
    settings = {**_QUALITY[kind], "xmp": packet}
    if kind == "PNG":
        chunks = PngImagePlugin.PngInfo()
        chunks.add_itxt(_PNG_KEY, packet.decode())
        settings = {"pnginfo": chunks}
    elif quality is not None:
        settings["quality"] = quality
    encoded = io.BytesIO()
    clean.save(encoded, kind, **settings)
    return encoded.getvalue()


def read_provenance(path: str | Path) -> Provenance:
    """The record that `save_picture` put into a picture file; pixels are not decoded.

    Raises:
        ImageError: if the file is missing, is not a picture, or carries no record that can be read.
    """
    path = Path(path)
    try:
        with Image.open(path) as image:
            packet = image.info.get("xmp") or image.info.get(_PNG_KEY)
    except FileNotFoundError:
        raise ImageError(f"no such file: {path}") from None
    except UnidentifiedImageError:
        raise ImageError(f"{path} is not a picture that can be read") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ImageError(f"{path} cannot be read: {error}") from None
    if not packet:
        raise ImageError(f"{path} says nothing of how it was made: it carries no description (XMP)")
    try:
        return Provenance.from_xmp(packet.encode() if isinstance(packet, str) else packet)
    except ImageError as error:
        raise ImageError(f"{path} {error}") from None
