"""What tensor parallelism adds to the peer (Shoeybi et al. 2019): each rank has some heads, feed-forward units and words, and
one sum over the ranks before and behind what is cut. A weight that is cut carries `cut` = (dim, parts): dim is made of so
many parts, of each of which a rank has its share.
"""
import torch
from torch import distributed

try:
    from torch.distributed._functional_collectives import all_reduce
except ImportError:
    all_reduce = None  # an older PyTorch, which does not compile either


def total(x, op="sum"):
    """The sum or the largest over all ranks, on each of them."""
    if all_reduce:
        return all_reduce(x.contiguous(), op, distributed.group.WORLD)
    x = x.clone()
    distributed.all_reduce(x, getattr(distributed.ReduceOp, op.upper()))
    return x


class Entry(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, dx):
        return total(dx)


class Exit(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return total(x)

    @staticmethod
    def backward(ctx, dx):
        return dx


def enter(x, ranks):
    """x, alike on all ranks, as what is cut reads it: its gradient is the sum of theirs."""
    return Entry.apply(x) if ranks > 1 else x


def leave(x, ranks):
    """The sum of what the ranks have of x."""
    return Exit.apply(x) if ranks > 1 else x


def share(size, ranks):
    """How much of one part a rank has; the last rank's may end in padding."""
    return -(-size // ranks)


def piece(weight, cut, ranks, rank):
    """A rank's share of a whole weight, padding 0."""
    if cut is None:
        return weight
    dim, parts = cut
    each = weight.unflatten(dim, (parts, -1))
    rows = torch.arange(share(each.shape[dim + 1], ranks), device=weight.device) + rank * share(each.shape[dim + 1], ranks)
    is_there = (rows < each.shape[dim + 1]).to(weight.dtype)
    taken = each.index_select(dim + 1, rows.clamp(max=each.shape[dim + 1] - 1))
    return (taken.movedim(dim + 1, -1) * is_there).movedim(-1, dim + 1).flatten(dim, dim + 1)


def cut_of(parameter):
    return getattr(parameter, "cut", None)


def cross_entropy(logits, targets, rank):
    """Mean over [N], of logits [N, V / ranks] of the words of this rank; targets [N] are words of the whole vocabulary."""
    top = total(logits.detach().amax(-1), "max")
    sums = Exit.apply((logits - top[:, None]).exp().sum(-1))
    at = targets - rank * logits.shape[-1]
    here = (at >= 0) & (at < logits.shape[-1])
    own = logits.gather(1, torch.where(here, at, 0)[:, None])[:, 0]
    return (sums.log() + top - Exit.apply(torch.where(here, own, 0.0))).mean()


def clip(parameters, most):
    """Scales gradients to a norm of `most`; what is not cut counts once."""
    gradients = [p.grad for p in parameters]
    squares = torch.stack([g.square().sum() for g in gradients])
    is_cut = torch.tensor([cut_of(p) is not None for p in parameters], device=squares.device)
    norm = (total((squares * is_cut).sum()) + (squares * ~is_cut).sum()).sqrt()
    scale = (most / (norm + 1e-6)).clamp(max=1.0)
    for g in gradients:
        g.mul_(scale)
