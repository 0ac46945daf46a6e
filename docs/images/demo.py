"""The README's picture: lightning-embed demo && python docs/images/demo.py runs/demo docs/images/demo.png."""

import sys

from matplotlib.figure import Figure

from lightning_embed.reporting import read_history
from lightning_embed.reporting.figures import draw_mpc, draw_widths

history = read_history(sys.argv[1])
figure = Figure(figsize=(12.0, 3.6), layout="constrained")
left, right = figure.subplots(1, 2)
draw_mpc(left, history)
draw_widths(right, history)
figure.savefig(sys.argv[2], dpi=110)
