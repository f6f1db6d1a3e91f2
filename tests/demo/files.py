"""What people upload: whole and broken, each with what the demo does with it."""

from pathlib import Path

from PIL import Image

TOO_LARGE = "megapixels"
UNREADABLE = "cannot be read"


def write_uploads(folder: Path, picture: Image.Image) -> dict[str, str | None]:
    """Writes the files; returns name -> what the message about it says, None where it is answered."""
    expected: dict[str, str | None] = {}

    def save(name: str, image: Image.Image, message: str | None = None, **options: object) -> Path:
        image.save(folder / name, **options)
        expected[name] = message
        return folder / name

    (folder / "text.png").write_text("I am no picture.")
    expected["text.png"] = UNREADABLE
    whole = save("whole.jpg", picture.resize((400, 300))).read_bytes()
    (folder / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    expected["truncated.jpg"] = UNREADABLE
    save("hundred_megapixels.png", Image.new("1", (10_000, 10_000)), TOO_LARGE)
    save("cmyk.jpg", picture.convert("CMYK"))
    save("animated.gif", picture, save_all=True, append_images=[picture.rotate(90)])
    exif = Image.Exif()
    exif[0x0112] = 6  # taken with the camera turned
    save("rotated.jpg", picture, exif=exif)
    save("dot.png", Image.new("RGB", (1, 1), "red"))
    alpha = picture.convert("RGBA")
    alpha.putalpha(100)
    save("alpha.png", alpha)
    return expected
