"""Uploads, valid and broken, each with the demo's expected reaction."""

from pathlib import Path

from PIL import Image

TOO_LARGE = "megapixels"
UNREADABLE = "cannot be read"


def write_uploads(folder: Path, image: Image.Image) -> dict[str, str | None]:
    """Write the files; return name -> a part of the expected message, None for files that are answered."""
    expected: dict[str, str | None] = {}

    def save(name: str, content: Image.Image, message: str | None = None, **options: object) -> Path:
        content.save(folder / name, **options)
        expected[name] = message
        return folder / name

    (folder / "text.png").write_text("This is not an image.")
    expected["text.png"] = UNREADABLE
    whole = save("whole.jpg", image.resize((400, 300))).read_bytes()
    (folder / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    expected["truncated.jpg"] = UNREADABLE
    save("hundred_megapixels.png", Image.new("1", (10_000, 10_000)), TOO_LARGE)
    save("cmyk.jpg", image.convert("CMYK"))
    save("animated.gif", image, save_all=True, append_images=[image.rotate(90)])
    exif = Image.Exif()
    exif[0x0112] = 6  # taken with a rotated camera
    save("rotated.jpg", image, exif=exif)
    save("dot.png", Image.new("RGB", (1, 1), "red"))
    alpha = image.convert("RGBA")
    alpha.putalpha(100)
    save("alpha.png", alpha)
    return expected
