#!/usr/bin/env python3
"""Draws the README's picture out of the databases of runs: loss, and a heat map of the layers' effective rank for each.

usage: docs/picture.py FILE.svg DB...      docs/picture.py docs/quickstart.svg runs/quickstart-1/{mha,mla-prerope,mla-decoupled}/run.db

Effective rank is the median over a layer's heads (form score, part full) over that of step 0, on one colour scale. Of several runs
in one database each variant's with the least seed is drawn.
"""
import sqlite3
import sys
from xml.sax.saxutils import escape

COLOURS = ("#0072b2", "#d55e00", "#009e73")  # of runs
RAMP = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))  # 0 to 1
WIDTH, LEFT, LOSS_WIDTH, GAP, TOP, HEIGHT, LEGEND = 900, 44, 240, 26, 34, 150, 46


def read(path):
    """[(name, losses, cells)] of a database's runs."""
    db = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    found = []
    for run, name, _ in db.execute("SELECT run_id, name, min(seed) FROM runs GROUP BY variant ORDER BY run_id").fetchall():
        losses = db.execute("SELECT step, loss FROM train_metrics WHERE run_id = ? AND loss IS NOT NULL ORDER BY step", (run,)).fetchall()
        ranks = db.execute("SELECT layer, step, effective_rank FROM layer_spectra WHERE run_id = ? AND form = 'score' AND part = 'full' "
                           "AND stat = 'median' AND effective_rank IS NOT NULL ORDER BY layer, step", (run,)).fetchall()
        start = {layer: rank for layer, step, rank in ranks if step == 0}
        found.append((name, losses, {(layer, step): rank / start[layer] for layer, step, rank in ranks if layer in start}))
    db.close()
    return found


def colour(value):
    at = min(max(value, 0), 1) * (len(RAMP) - 1)
    i = min(int(at), len(RAMP) - 2)
    return "#%02x%02x%02x" % tuple(round(a + (b - a) * (at - i)) for a, b in zip(RAMP[i], RAMP[i + 1]))


def text(x, y, words, anchor="middle", colour="#333"):
    return f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}" fill="{colour}">{escape(str(words))}</text>'


def loss_plot(runs):
    top = max(loss for _, losses, _ in runs for _, loss in losses)
    low = min(loss for _, losses, _ in runs for _, loss in losses)
    last = max(step for _, losses, _ in runs for step, _ in losses)

    def place(step, loss):
        return f"{LEFT + LOSS_WIDTH * step / last:.1f},{TOP + HEIGHT * (top - loss) / (top - low):.1f}"
    out = [text(LEFT + LOSS_WIDTH / 2, TOP - 12, "training loss"), text(LEFT - 6, TOP + 4, f"{top:.1f}", "end"),
           text(LEFT - 6, TOP + HEIGHT + 4, f"{low:.1f}", "end"), text(LEFT, TOP + HEIGHT + 16, 0),
           text(LEFT + LOSS_WIDTH, TOP + HEIGHT + 16, last), text(LEFT + LOSS_WIDTH / 2, TOP + HEIGHT + 16, "step"),
           f'<path d="M{LEFT} {TOP}v{HEIGHT}h{LOSS_WIDTH}" fill="none" stroke="#999"/>']
    for i, (name, losses, _) in enumerate(runs):
        points = " ".join(place(step, loss) for step, loss in losses)
        out.append(f'<polyline points="{points}" fill="none" stroke="{COLOURS[i % 3]}" stroke-width="1.5"/>')
        out.append(text(LEFT + LOSS_WIDTH - 4, TOP + 14 + 15 * i, name, "end", COLOURS[i % 3]))
    return out


def heat_map(name, cells, x, width, labels_layers):
    layers, steps = (sorted({key[i] for key in cells}) for i in (0, 1))
    w, h = width / len(steps), HEIGHT / len(layers)
    out = [text(x + width / 2, TOP - 12, name)]
    for (layer, step), value in cells.items():
        at = x + w * steps.index(step), TOP + h * layers.index(layer)
        out.append(f'<rect x="{at[0]:.1f}" y="{at[1]:.1f}" width="{w + 0.3:.1f}" height="{h + 0.3:.1f}" fill="{colour(value)}">'
                   f"<title>layer {layer}, step {step}: {value:.2f}</title></rect>")
    for i in sorted({0, len(steps) // 3, 2 * len(steps) // 3, len(steps) - 1}):
        out.append(text(x + w * (i + 0.5), TOP + HEIGHT + 16, steps[i]))
    if labels_layers:
        out += [text(x - 6, TOP + h * (i + 0.5) + 4, layer, "end") for i, layer in enumerate(layers)]
    return out


def legend(x, width, low):
    """The colours that occur, from the least on."""
    shades = [f'<rect x="{x + width * i / 40:.1f}" y="{TOP + HEIGHT + 28}" width="{width / 40 + 0.3:.1f}" height="8" fill="{colour(i / 40)}"/>'
              for i in range(40)]
    return shades + [text(x - 6, TOP + HEIGHT + 36, 0, "end"), text(x + width + 6, TOP + HEIGHT + 36, "1", "start"),
                     text(x + width / 2, TOP + HEIGHT + 50, f"effective rank over that of step 0, layer by step (least: {low:.2f})")]


def draw(runs):
    height = TOP + HEIGHT + LEGEND + 12
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="12">',
           f'<rect width="{WIDTH}" height="{height}" rx="6" fill="#fff"/>', *loss_plot(runs)]
    first = LEFT + LOSS_WIDTH + 2 * GAP
    width = (WIDTH - first - 12 - GAP * (len(runs) - 1)) / len(runs)
    for i, (name, _, cells) in enumerate(runs):
        out += heat_map(name, cells, first + i * (width + GAP), width, i == 0)
    low = min(value for _, _, cells in runs for value in cells.values())
    return "\n".join(out + legend(first + width, width, low) + ["</svg>"]) + "\n"


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    picture = draw([run for path in sys.argv[2:] for run in read(path)])
    with open(sys.argv[1], "w", encoding="utf-8") as file:
        file.write(picture)
