"""Slow, obvious versions of what the package computes fast."""

import torch

# Operators: a hidden layer is (w_in, b_in, w_out, b_out), as in lightning_embed.operators.


def layer_output(x, w_in, b_in, w_out, b_out, activation, *, skip=False):
    """W_out φ(W_in x + b_in) + b_out, neuron after neuron; with `skip`, φ(z) + x in place of φ(z)."""
    total = torch.zeros(len(x), w_out.shape[0], dtype=x.dtype)
    for j in range(w_in.shape[0]):
        pre = sum(w_in[j, k] * x[:, k] for k in range(x.shape[1]))
        if b_in is not None:
            pre = pre + b_in[j]
        feature = activation(pre) + (x[:, j] if skip else 0)
        for i in range(w_out.shape[0]):
            total[:, i] += w_out[i, j] * feature
    return total if b_out is None else total + b_out


def one_step_splitting(w_in, b_in, w_out, s, alpha):
    """(T + α V)(θ), term by term as 001, Def. 4.4 prints it; s counts from 0."""
    fan_out = w_out.shape[0]
    t_in = torch.cat([w_in, w_in[s : s + 1]])
    t_bias = torch.cat([b_in, b_in[s : s + 1]])
    t_out = torch.cat([w_out, torch.zeros(fan_out, 1, dtype=w_out.dtype)], dim=1)
    v_out = torch.zeros_like(t_out)
    v_out[:, s], v_out[:, -1] = -w_out[:, s], w_out[:, s]
    return t_in, t_bias, t_out + alpha * v_out


def merged_affine(w1, b1, w2, b2, slope, intercept, *, skip=False):
    """The affine map h -> W2 (λ (W1 h + b1) + μ (+ h)) + b2, read off at zero and at the unit vectors."""

    def run(h):
        post = slope * (w1 @ h + (0 if b1 is None else b1)) + intercept + (h if skip else 0)
        return w2 @ post + (0 if b2 is None else b2)

    zero = torch.zeros(w1.shape[1], dtype=w1.dtype)
    units = torch.eye(w1.shape[1], dtype=w1.dtype)
    return torch.stack([run(unit) - run(zero) for unit in units], dim=1), run(zero)


# Analysis: an empirical risk is (outputs of θ, loss); θ is one vector.


def double_loop_hessian(function, theta):
    """Second derivatives of a scalar function, entry by entry: the gradient of every entry of the gradient."""
    theta = theta.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(function(theta), theta, create_graph=True)
    rows = [torch.autograd.grad(entry, theta, retain_graph=True, allow_unused=True)[0] for entry in gradient]
    return torch.stack([torch.zeros_like(theta) if row is None else row for row in rows])


def hessian_by_samples(outputs, loss, theta):
    """H⁽¹⁾ and H⁽²⁾ as 001, eqs. 3.9 and 3.10 print them: sums over samples and outputs; loss is of one sample."""
    count, width = outputs(theta).shape
    first = second = 0
    for n in range(count):
        here = outputs(theta)[n].detach().requires_grad_()
        (slopes,) = torch.autograd.grad(loss(here, n), here)
        curvature = double_loop_hessian(lambda f, n=n: loss(f, n), here)
        point = theta.detach().requires_grad_()
        features = [torch.autograd.grad(outputs(point)[n, i], point)[0] for i in range(width)]
        for i in range(width):
            second = second + slopes[i] * double_loop_hessian(lambda t, n=n, i=i: outputs(t)[n, i], theta) / count
            for j in range(width):
                first = first + curvature[i, j] * torch.outer(features[i], features[j]) / count
    return first, second


def cka_by_gram_matrices(x, y):
    """HSIC₀(K, L) / √(HSIC₀(K, K) HSIC₀(L, L)) of centred Gram matrices, as 000, App. A.6 defines it."""
    count = len(x)
    centre = torch.eye(count, dtype=x.dtype) - torch.ones(count, count, dtype=x.dtype) / count
    k, m = (centre @ one @ one.T @ centre for one in (x, y))

    def hsic(a, b):
        return sum(a[i, j] * b[i, j] for i in range(count) for j in range(count)) / (count - 1) ** 2

    return hsic(k, m) / (hsic(k, k) * hsic(m, m)).sqrt()


# Embeddings: θ is ((W¹, b¹), …), as in lightning_embed.operators.theta; layers and neurons as there.


def one_step_null(theta, layer, alpha):
    """(T_{l,0} + α V_{l,0})(θ), layer by layer as 001, Def. 4.3 prints it."""
    (w_in, b_in), (w_out, b_out) = theta[layer - 1], theta[layer]
    t_in = torch.cat([w_in, torch.zeros(1, w_in.shape[1], dtype=w_in.dtype)])
    v_bias = torch.cat([torch.zeros_like(b_in), torch.ones(1, dtype=b_in.dtype)])
    t_bias = torch.cat([b_in, torch.zeros(1, dtype=b_in.dtype)]) + alpha * v_bias
    t_out = torch.cat([w_out, torch.zeros(len(w_out), 1, dtype=w_out.dtype)], dim=1)
    return (*theta[: layer - 1], (t_in, t_bias), (t_out, b_out), *theta[layer + 1 :])


def general_embedding(theta, index, alpha, alpha_bias):
    """001, Def. 5.2 with the convention of Remark 5.1, entry by entry; an index below 0 is a null neuron."""
    wide = []
    for number, (weight, bias) in enumerate(theta, start=1):
        rows, columns = index[number], index[number - 1]
        new_weight, new_bias = torch.zeros(len(rows), len(columns)).double(), torch.zeros(len(rows)).double()
        for i, row in enumerate(rows):
            new_bias[i] = alpha_bias[number - 1][i] + (0 if row < 0 else bias[row])
            for j, column in enumerate(columns):
                new_weight[i, j] = alpha[number - 1][i, j] * (1 if row < 0 or column < 0 else weight[row, column])
        wide.append((new_weight, new_bias))
    return tuple(wide)
