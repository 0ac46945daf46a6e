"""How near the optimizer state carried over a merge comes to what the narrow network would have gathered itself.

A tanh MLP is trained on scikit-learn's digits. At fixed weights (learning rate 0), Adam gathers its moments on the wide
network and, as the reference, on the merged one, from the same batches. For the moments that are carried over it
prints, per layer, cosine and ratio of norms to the reference; side by side: our map, and keeping the kept neurons' own
moments (what slicing an optimizer's state does).
"""

import copy
import logging
import warnings

import torch
from tabulate import tabulate

import lightning_embed as le
from lightning_embed import demo
from lightning_embed.surgery import optimizer

SEED, EPOCHS, STEPS = 0, 30, 20


def gather(net, data):
    adam = torch.optim.Adam(net.parameters(), lr=0.0)
    generator = torch.Generator().manual_seed(1)
    for _ in range(STEPS):
        batch = torch.randint(0, len(data), (64,), generator=generator)
        images, labels = data[batch]
        adam.zero_grad()
        torch.nn.functional.cross_entropy(net(images), labels).backward()
        adam.step()
    return adam


def sliced(move, key, value):
    return value.index_select(move.dim, move.index)


def main():
    warnings.simplefilter("ignore")
    logging.disable(logging.INFO)
    data, _ = demo.digits(SEED)
    net = demo.train(SEED, EPOCHS, [], None, quiet=True).lightning_module.net
    ours, rows = optimizer.Sliced.carry, []
    for span in (0.01, 0.05):
        plan = le.propose(net, data.tensors[0], criteria=le.Criteria(None, None, span))
        narrow = copy.deepcopy(net)
        le.apply(narrow, plan)
        reference = gather(narrow, data)
        results = {}
        for name, carry in (("ours", ours), ("sliced", sliced)):
            wide = copy.deepcopy(net)
            adam = gather(wide, data)
            optimizer.Sliced.carry = carry
            le.apply(wide, plan, optimizers=adam)
            optimizer.Sliced.carry = ours
            results[name] = [adam.state[one] for one in wide.parameters()]
        for place, (name, one) in enumerate(narrow.named_parameters()):
            if not name.endswith("weight"):
                continue
            row = [span, name]
            for key in ("exp_avg", "exp_avg_sq"):
                true = reference.state[one][key].flatten()
                for carried in results.values():
                    value = carried[place][key].flatten()
                    row += [torch.cosine_similarity(value, true, 0).item(), (value.norm() / true.norm()).item()]
            rows.append(row)
    heads = ["span", "parameter"]
    heads += [f"{k}\n{n}\n{w}" for k in ("first", "second") for n in ("ours", "sliced") for w in ("cosine", "ratio")]
    print(tabulate(rows, headers=heads, floatfmt=".2f"))


if __name__ == "__main__":
    main()
