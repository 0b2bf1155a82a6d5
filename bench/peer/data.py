"""Token shards and the order in which a run sees them, from docs/design.md sections 4 and 9, in NumPy."""
import glob
import os

import numpy

DATA_ORDER = 0x5566C0AE6603F17B  # XXH64 of "data order"


def philox(counter, key):
    """Philox4x32-10 (Salmon et al. 2011) over arrays of 32-bit words, held as uint64."""
    low = numpy.uint64(0xFFFFFFFF)
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        a, b = c0 * numpy.uint64(0xD2511F53), c2 * numpy.uint64(0xCD9E8D57)
        c0, c1, c2, c3 = b >> numpy.uint64(32) ^ c1 ^ k0, b & low, a >> numpy.uint64(32) ^ c3 ^ k1, a & low
        k0, k1 = k0 + numpy.uint64(0x9E3779B9) & low, k1 + numpy.uint64(0xBB67AE85) & low
    return c0, c1, c2, c3


def halves(n):
    return numpy.uint64(n & 0xFFFFFFFF), numpy.uint64(n >> 32)


def random_u64(seed, stream, index):
    low, high = numpy.uint64(0xFFFFFFFF), numpy.uint64(32)
    words = philox((index & low, index >> high, *halves(stream)), halves(seed))
    return words[1] << high | words[0]


def permutation(seed, stream, n):
    """All n places of one epoch: a Feistel network of 16 rounds over rows x columns >= n that walks until it lands
    inside."""
    rows = int(numpy.ceil(numpy.sqrt(float(n))))
    columns = (n + rows - 1) // rows
    rows, columns = numpy.uint64(rows), numpy.uint64(columns)
    place = numpy.arange(n, dtype=numpy.uint64)
    outside = numpy.ones(n, dtype=bool)
    while outside.any():
        left, right = numpy.divmod(place[outside], columns)
        for step in range(0, 16, 2):
            left = (left + random_u64(seed, stream, numpy.uint64(step << 32) | right) % rows) % rows
            right = (right + random_u64(seed, stream, numpy.uint64(step + 1 << 32) | left) % columns) % columns
        place[outside] = left * columns + right
        outside = place >= n
    return place.astype(numpy.int64)


class Shards:
    """Windows of context + 1 tokens of the uint16 shards that a glob names; inputs are disjoint, none crosses a shard."""

    def __init__(self, pattern, context, seed):
        self.context, self.seed, self.epochs = context, seed, {}
        self.shards = []
        for path in sorted(glob.glob(pattern), key=os.fsencode):
            magic, version, count = numpy.fromfile(path, "<i4", 3)
            if (magic, version) != (20240520, 1):
                raise SystemExit(f"{path}: not a shard of 16-bit tokens")
            self.shards.append(numpy.memmap(path, "<u2", "r", 1024, (count,)))
        self.first = numpy.cumsum([0] + [(len(s) - 1) // context for s in self.shards])
        if self.windows == 0:
            raise SystemExit(f"{pattern}: no shard, or not one whole window of {context} tokens")

    def window(self, w):
        shard = int(numpy.searchsorted(self.first, w, "right")) - 1
        begin = (w - self.first[shard]) * self.context
        return self.shards[shard][begin:begin + self.context + 1].astype(numpy.int64)

    @property
    def windows(self):
        return int(self.first[-1])

    def rows(self, windows):
        """Inputs and targets [len(windows), context]."""
        rows = numpy.stack([self.window(w) for w in windows])
        return rows[:, :-1], rows[:, 1:]

    def batch(self, step, size):
        """Inputs and targets [size, context] of a step, counted from 1."""
        windows = []
        for position in range((step - 1) * size, step * size):
            epoch, index = divmod(position, self.windows)
            if epoch not in self.epochs:
                self.epochs[epoch] = permutation(self.seed, DATA_ORDER + epoch, self.windows)
            windows.append(self.epochs[epoch][index])
        return self.rows(windows)
