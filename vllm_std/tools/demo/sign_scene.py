"""One scene of a "sign" video: a clock, a sign with the clock of another scene, and one shape, as pixels and words."""

from dataclasses import dataclass

import numpy as np

FRAME = 84  # pixels of a side: a row of two numbers above a floor of two rows of three places
TILE = 28  # pixels of a side of a place, which is what one visual token shows
MARGIN = 2  # pixels by which a shape may be shifted over the edge of the floor
BORDER_WIDTH = 3  # pixels of the frame around the floor
SAMPLES = 4  # of each side of a pixel, where the edge of a shape is drawn
SIZES = {"small": 7.5, "large": 11.5}  # pixels: radius of a shape
# RGB of shapes.
COLORS = {
    "red": (228, 34, 40), "green": (40, 190, 60), "blue": (44, 92, 250), "yellow": (244, 226, 46),
    "orange": (248, 136, 24), "purple": (176, 60, 222), "white": (244, 244, 244), "cyan": (48, 222, 230),
}  # fmt: skip
# RGB of the floor.
BACKGROUNDS = {"black": (18, 18, 18), "gray": (112, 112, 112), "navy": (18, 26, 104), "brown": (98, 54, 26)}
POSITIONS = ("upper left", "upper middle", "upper right", "lower left", "lower middle", "lower right")
CLOCK_COLORS = ((238, 238, 238), (14, 14, 14))  # RGB of digits, and of what is behind them
SIGN_COLORS = ((14, 14, 14), (232, 204, 44))  # the same
BORDER = (196, 196, 188)  # RGB of the frame around the floor
# 3 x 5 pixels of each digit, row by row.
DIGITS = (
    "111101101101111", "010110010010111", "111001111100111", "111001111001111", "101101111001001",
    "111100111001111", "111100111101111", "111001001001001", "111101111101111", "111101111001111",
)  # fmt: skip


@dataclass
class Scene:
    """clock, sign: numbers below 1000; position: in POSITIONS; shift: pixels to the right and downwards."""

    clock: int
    sign: int
    size: str
    color: str
    shape: str
    position: int
    background: str
    shift: tuple[int, int]

    def sentence(self, style: int) -> str:
        """One of the three sentences that the model was taught."""
        place = POSITIONS[self.position]
        clock, sign = f"{self.clock:03d}", f"{self.sign:03d}"
        thing = f"{self.size} {self.color} {self.shape}"
        return (
            f"At {clock} there is a {thing} in the {place} on a {self.background} background, "
            f"and the sign says {sign}.",
            f"Scene {clock} shows a {thing} at the {place} of a {self.background} picture with the number {sign}.",
            f"Clock {clock}: {thing}, {place}, {self.background}, sign {sign}.",
        )[style]

    def image(self) -> np.ndarray:
        """[FRAME, FRAME, 3] uint8."""
        image = np.empty((FRAME, FRAME, 3), np.float32)
        numbers = [_number(self.clock, *CLOCK_COLORS), _number(self.sign, *SIGN_COLORS)]
        image[:TILE] = np.concatenate(numbers, axis=1)
        floor = image[TILE:]
        floor[:] = BORDER
        floor[BORDER_WIDTH:-BORDER_WIDTH, BORDER_WIDTH:-BORDER_WIDTH] = BACKGROUNDS[self.background]
        ink = self._ink()
        floor[:] = ink * np.array(COLORS[self.color]) + (1 - ink) * floor
        return (image + 0.5).astype(np.uint8)

    def _ink(self) -> np.ndarray:
        """[2 * TILE, 3 * TILE, 1] how much of each pixel of the floor the shape covers."""
        row, column = divmod(self.position, 3)
        right, down = self.shift
        ink = np.zeros((2 * TILE + 2 * MARGIN, 3 * TILE + 2 * MARGIN, 1), np.float32)
        top = TILE * row + down + MARGIN
        left = TILE * column + right + MARGIN
        ink[top : top + TILE, left : left + TILE, 0] = _coverage(self.shape, SIZES[self.size])
        return ink[MARGIN:-MARGIN, MARGIN:-MARGIN]


def _number(value: int, ink: tuple, paper: tuple) -> np.ndarray:
    """[28, 42, 3] three digits, each pixel of the font 3 wide and 4 high."""
    mask = np.zeros((28, 42, 1), np.float32)
    for place, digit in enumerate(f"{value:03d}"):
        bits = np.array(list(DIGITS[int(digit)]), np.float32).reshape(5, 3)
        mask[4:24, 14 * place + 3 : 14 * place + 12, 0] = np.kron(bits, np.ones((4, 3)))
    return mask * np.array(ink) + (1 - mask) * np.array(paper)


def _coverage(shape: str, radius: float) -> np.ndarray:
    """[TILE, TILE] how much of each pixel a shape covers, in the middle of a place."""
    offsets = ((np.arange(SAMPLES * TILE) + 0.5) / SAMPLES - TILE / 2) / radius
    y, x = np.meshgrid(offsets, offsets, indexing="ij")
    inside = SHAPES[shape](x, y).astype(np.float32)
    return inside.reshape(TILE, SAMPLES, TILE, SAMPLES).mean((1, 3))


def _star(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Five points; folded into one tenth of the star, a point is inside on one side of one edge."""
    angle = np.arctan2(x, -y) % (2 * np.pi / 5)
    angle = np.minimum(angle, 2 * np.pi / 5 - angle)
    tip, notch = 1.05, 0.46 * np.exp(1j * np.pi / 5)
    edge, point = notch - tip, np.hypot(x, y) * np.exp(1j * angle) - tip
    return edge.real * point.imag - edge.imag * point.real >= 0


def _heart(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    x, y = 1.2 * x, 0.12 - 1.15 * y
    return (x * x + y * y - 1) ** 3 - x * x * y**3 <= 0


# Whether a point is inside, in units of the radius.
SHAPES = {
    "circle": lambda x, y: np.hypot(x, y) <= 0.95,
    "square": lambda x, y: np.maximum(abs(x), abs(y)) <= 0.86,
    "triangle": lambda x, y: (y <= 0.85) & (abs(x) <= (y + 1) * 0.54),
    "star": _star,
    "ring": lambda x, y: (np.hypot(x, y) <= 1) & (np.hypot(x, y) >= 0.56),
    "cross": lambda x, y: (np.minimum(abs(x), abs(y)) <= 0.3) & (np.maximum(abs(x), abs(y)) <= 0.98),
    "diamond": lambda x, y: abs(x) * 1.25 + abs(y) <= 1.05,
    "heart": _heart,
}
