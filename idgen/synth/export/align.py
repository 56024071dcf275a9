"""Pictures for recognisers: the face in the ArcFace pose, with the word of its making kept."""

import io

from PIL import Image, PngImagePlugin

from idgen.data.pictures import Picture
from idgen.errors import ConfigError, FaceNotFoundError
from idgen.faces.detect import Detector
from idgen.faces.photo import choose_face, face_crop, find_faces
from idgen.pixels import to_pil

PNG_XMP = "XML:com.adobe.xmp"  # XMP specification part 3, sec. 1.1.5


class Aligner:
    """Finds the largest face of a picture, and cuts it as `face_crop` does.

    Args:
        detector: see `idgen.faces.detect`.
        size_px: side of the crop, from 32 to 512; recognisers of the ArcFace family want 112.

    Raises:
        ConfigError: for another size.
    """

    def __init__(self, detector: Detector, size_px: int) -> None:
        if not 32 <= size_px <= 512:
            raise ConfigError(f"--align must be from 32 to 512 pixels (recognisers want 112), got {size_px}")
        self.detector, self.size_px = detector, size_px

    def __call__(self, picture: Picture) -> bytes | None:
        """The crop as PNG, with the description (XMP) of the picture; None where no usable face is found.

        Raises:
            ImageError: if the picture is damaged.
        """
        try:
            photo = find_faces(picture.open(), self.detector)
            face = choose_face(photo, "largest", source=picture.name)
        except FaceNotFoundError:
            return None
        return _as_png(to_pil(face_crop(photo.image, face, self.size_px)), description(picture.read_bytes()))


def description(data: bytes) -> bytes | None:
    """The XMP packet of an encoded picture, as it stands there."""
    with Image.open(io.BytesIO(data)) as image:
        packet = image.info.get("xmp") or image.info.get(PNG_XMP)
    return packet.encode() if isinstance(packet, str) else packet


def _as_png(image: Image.Image, packet: bytes | None) -> bytes:
    chunks = PngImagePlugin.PngInfo()
    if packet is not None:
        chunks.add_itxt(PNG_XMP, packet.decode("utf-8", "replace"))
    stream = io.BytesIO()
    image.save(stream, "PNG", pnginfo=chunks)
    return stream.getvalue()
