"""Dense references of all shipped transforms, straight from their papers.

They share no code with `bishare_dsl.transforms`. Matrices have the paper's names and orientation (A is
``(r, d_in)``, B is ``(d_out, r)``), and every product is computed in full, which is slow.
"""

import copy
from dataclasses import replace
from functools import partial

import torch
from torch import nn
from torch.nn.utils import parametrize

from bishare_dsl.models.inspect import linear_maps
from bishare_dsl.testing.checks import pool_shapes
from bishare_dsl.testing.reference import REFERENCES, TermValues, reference
from bishare_dsl.transforms import Width, load_transform
from bishare_dsl.transforms.registry import COMPOSED


@reference("Identity")
def identity(term):
    """Compute ``B A``: Equation 1, LoRA."""
    return term["B"].T, term["A"]


@reference("SS")
def slice_sharing(term):
    """Compute ``B_s[window, :] A_s[:, window]``: Equation 3, Algorithm 1; the windows of Table 4."""
    a_s, b_s = term["A"], term["B"].T
    windows = []
    for whole, width in ((a_s.shape[1], term.d_in), (b_s.shape[0], term.d_out)):
        first = {"leading": 0, "trailing": whole - width, "centre": (whole - width) // 2}[
            term.options["slice"]
        ]
        windows.append(list(range(first, first + width)))
    columns, rows = windows
    return b_s[rows, :], a_s[:, columns]


@reference("GT")
def gate_transformation(term):
    """Compute ``(G_ou G_od)(B_s A_s)(G_iu G_id)``: Equation 4, Algorithm 2; split at the narrowest
    dimension.
    """
    a_s, b_s = term["A"], term["B"].T
    g_od, g_ou = term["G_od"], term["G_ou"].T
    g_id, g_iu = term["G_id"], term["G_iu"].T
    if term.rank < term.options["gate_rank"]:
        return g_ou @ g_od @ b_s, a_s @ g_iu @ g_id
    w_s = b_s @ a_s  # (n, m)
    return g_ou @ g_od @ w_s @ g_iu, g_id


@reference("KE")
def kronecker_extension(term):
    """Compute ``(K_B (x) B_s)(K_A (x) A_s)``: Equation 6, Algorithm 3; row by row for Table 8.

    If ``size`` does not divide a width, the excess is cut off.
    """
    a_s, b_s = term["A"], term["B"].T
    k_a, k_b = term["K_A"], term["K_B"].T
    if term.options["rowwise"]:
        rows = [torch.kron(k_a[i], a_s[i]) for i in range(term.rank)]
        columns = [torch.kron(k_b[:, i], b_s[:, i]) for i in range(term.rank)]
        a, b = torch.stack(rows), torch.stack(columns, dim=1)
    else:
        a, b = _kronecker(k_a, a_s), _kronecker(k_b, b_s)
    return b[: term.d_out, :], a[:, : term.d_in]


def _kronecker(kernel, shared):
    """Multiply block by block; `torch.kron` fails on some transposed matrices with a single row or column."""
    return torch.cat([torch.cat([k * shared for k in row], dim=1) for row in kernel])


@reference("VectorBank")
def vector_bank(term):
    """Compute VB-LoRA: each subvector is ``sum_k w_k bank[k]`` over its own largest logits."""
    bank, length = term["bank"], term.options["length"]

    def rows(logits, width):
        stretches = []
        for own in logits:
            largest = sorted(range(len(own)), key=lambda i: -float(own[i].detach()))[
                : term.options["top_k"]
            ]
            weights = torch.stack([(own[i] - own[largest[0]]).exp() for i in largest])
            stretches.append((weights / weights.sum()) @ bank[largest])
        tiles = width // length
        return torch.stack(
            [torch.cat(stretches[i * tiles : (i + 1) * tiles]) for i in range(term.rank)]
        )

    return rows(term["L_B"], term.d_out).T, rows(term["L_A"], term.d_in)


@reference("Rotation")
def rotation(term):
    """Compute PRoLoRA: ``[A_0, P A_0, P^2 A_0, ...]``, where P rotates the rank by the stride."""

    def repeated(chunk, chunks, width):
        stride = term.options["stride"]
        stride = max(term.rank // chunks, 1) if stride is None else stride
        turn = torch.zeros(term.rank, term.rank, dtype=chunk.dtype)
        for i in range(term.rank):
            turn[(i + stride) % term.rank, i] = 1
        copies = [torch.linalg.matrix_power(turn, i) @ chunk for i in range(chunks)]
        return torch.cat(copies, dim=1)[:, :width]

    a = repeated(term["A"], term.options["chunks_A"], term.d_in)
    b = repeated(term["B"], term.options["chunks_B"], term.d_out)
    return b.T, a


@reference("BlockDiagonal")
def block_diagonal(term):
    """MELoRA: ``diag(B_1, ..., B_n) diag(A_1, ..., A_n)``; in BD-LoRA, only one of them
    is block-diagonal.
    """
    n, cut = term.options["blocks"], term.options.get("cut", "both")
    a = torch.zeros(n * term.rank, term.d_in, dtype=term["A"].dtype)
    b = torch.zeros(term.d_out, n * term.rank, dtype=term["B"].dtype)
    d_in, d_out = term.d_in // n, term.d_out // n
    for i in range(n):
        ranks = slice(i * term.rank, (i + 1) * term.rank)
        columns, rows = slice(i * d_in, (i + 1) * d_in), slice(i * d_out, (i + 1) * d_out)
        a[ranks, columns] = term["A"][:, columns] if cut != "out" else 0
        b[rows, ranks] = term["B"].T[rows, :] if cut != "in" else 0
    return term["B"].T if cut == "in" else b, term["A"] if cut == "out" else a


@reference("Basis")
def basis(term):
    """Compute NOLA: ``sum_j beta_j B_j`` and ``sum_i alpha_i A_i``, cropped to the site's widths."""
    count, r = term.options["count"], term.rank
    alpha, beta = term["c_A"][0], term["c_B"][0]
    a = torch.zeros(r, term.d_in, dtype=alpha.dtype)
    b = torch.zeros(term.d_out, r, dtype=beta.dtype)
    for i in range(count):
        a = a + alpha[i] * term["A"][i * r : (i + 1) * r, : term.d_in]
        b = b + beta[i] * term["B"][i * r : (i + 1) * r, : term.d_out].T
    return b, a


@reference("Mix")
def mix(term):
    """Compute Lily with a static router, MASA: ``sum_k m_k B_k``, ``sum_k m_k A_k``, cropped if wider."""

    def mixed(role, width):
        count, r = term.options[f"count_{role}"], term.rank
        matrices = [term[role][k * r : (k + 1) * r, :width] for k in range(count)]
        if count == 1:
            return matrices[0]
        weights = term[f"m_{role}"][0]
        return torch.stack([weights[k] * matrices[k] for k in range(count)]).sum(0)

    return mixed("B", term.d_out).T, mixed("A", term.d_in)


@reference("Core")
def core(term):
    """LoRA-XS: ``B R A``; MetaTT: ``B R_n ... R_1 A``; TinyLoRA: ``R_1 = sum_i v_i P_i``.

    Wider factors are cropped. R and P are stored transposed.
    """
    b, a = term["B"].T[: term.d_out], term["A"][:, : term.d_in]
    for i in range(term.options.get("cores", 1), 1, -1):
        b = b @ term[f"core_{i}"].T
    first = term["core"]
    if count := term.options.get("count", 0):
        p = [first[i * term.rank : (i + 1) * term.rank] for i in range(count)]
        first = torch.stack([v * p_i for v, p_i in zip(term["c"][0], p, strict=True)]).sum(0)
    return b @ first.T, a


@reference("MiSS")
def miss(term):
    """MiSS: column j of the update is row ``j mod r`` of the matrix."""
    a = torch.zeros(term.rank, term.d_in, dtype=term["B"].dtype)
    for j in range(term.d_in):
        a[j % term.rank, j] = 1
    return term["B"].T[: term.d_out], a


@reference("Hadamard")
def hadamard(term):
    """LoHa: ``(B_1 A_1) * (B_2 A_2)``, in full."""
    first = term["B"].T[: term.d_out] @ term["A"][:, : term.d_in]
    update = first * (term["B_2"].T @ term["A_2"])
    return update, torch.eye(term.d_in, dtype=update.dtype)


@reference("Grid")
def grid(term):
    """GraLoRA: block by block, ``B_mn A_mn``, in full."""
    k, r = term.options["blocks"], term.rank // term.options["blocks"]
    rows, columns = term.d_out // k, term.d_in // k
    update = torch.zeros(term.d_out, term.d_in, dtype=term["A"].dtype)
    for m in range(k):
        for n in range(k):
            of_m, of_n = slice(m * rows, (m + 1) * rows), slice(n * columns, (n + 1) * columns)
            b, a = term["B"][n * r : (n + 1) * r, of_m], term["A"][m * r : (m + 1) * r, of_n]
            update[of_m, of_n] = b.T @ a
    return update, torch.eye(term.d_in, dtype=update.dtype)


@reference("Shards")
def shards(term):
    """MoS: each row is assembled from the shards of the pool that the site selects."""
    count, pool = term.options["shards"], term.rank * term.options["shards"]

    def rows(role, width):
        piece = width // count
        drawn = iter(term[f"I_{role}"].detach().tolist())
        made = []
        for _ in range(term.options["rows"]):
            row = []
            for _ in range(count):
                high, low = next(drawn)
                which, place = divmod((int(high) * 256 + int(low)) % pool, count)
                row.append(term[role][which, place * piece : (place + 1) * piece])
            made.append(torch.cat(row))
        return torch.stack(made)

    return rows("B", term.d_out).T, rows("A", term.d_in)


@reference("Loadings")
def loadings(term):
    """Compute EigenLoRAx: ``sum_k l_k v_k`` for each row of A and column of B, with wider
    vectors cropped.
    """
    a = torch.zeros(term.rank, term.d_in, dtype=term["A"].dtype)
    b = torch.zeros(term.d_out, term.rank, dtype=term["B"].dtype)
    for row in range(term.rank):
        for k in range(term.options["vectors"]):
            a[row] = a[row] + term["L_A"][row, k] * term["A"][k, : term.d_in]
            b[:, row] = b[:, row] + term["L_B"][row, k] * term["B"][k, : term.d_out]
    return b, a


@reference("Gather")
def gather(term):
    """Compute Uni-LoRA with its projection: ``theta_D = P theta_d``, one entry in each row of P."""
    theta, length = term["theta"][0], term.options["length"]

    def whole(role, width):
        rows = []
        for high, middle, low in term[f"I_{role}"].detach().tolist():
            row = torch.zeros(length, dtype=theta.dtype)
            index = (int(high) * 65_536 + int(middle) * 256 + int(low)) % length
            row[index] = max(term.rank * width / length, 1) ** -0.5
            rows.append(row)
        return (torch.stack(rows) @ theta).reshape(term.rank, width)

    return whole("B", term.d_out).T, whole("A", term.d_in)


@reference("Scaled")
def scaled(term):
    """Compute RandLoRA: ``sum_i B_i L_i A G_i`` with diagonal matrices, in full."""
    r = term.rank
    a = term["A"][:, : term.d_in]
    update = torch.zeros(term.d_out, term.d_in, dtype=a.dtype)
    for i in range(term.options["count"]):
        b = term["B"][i * r : (i + 1) * r, : term.d_out].T
        update = update + b @ torch.diag(term["by_row"][i]) @ a @ torch.diag(term["by_input"][i])
    return update, torch.eye(term.d_in, dtype=a.dtype)


@reference("Experts")
def experts(term, x):
    """Compute HydraLoRA: ``sum_i w_i(x) B_i A x`` with ``w = softmax(G x)``, token by token."""
    count, r = term.options["count"], term.rank
    b = [term["B"].T[:, i * r : (i + 1) * r] for i in range(count)]  # (d_out, r) each
    updates = []
    for token in x.reshape(-1, term.d_in):
        weights = (term["G"] @ token).exp()
        weights = weights / weights.sum()
        updates.append(sum(weights[i] * (b[i] @ (term["A"] @ token)) for i in range(count)))
    return torch.stack(updates).reshape(*x.shape[:-1], term.d_out)


@reference(COMPOSED)
def composition(term, x=None):
    """Compute ``B_n^T ... M ... A_n`` of a composition by dense products of its steps.

    With gates, compute ``B_n^T ... M ... A_n x`` token by token: the matrices of a token have its coefficients.
    """
    composed = load_transform(COMPOSED, term.options)
    if not composed.linear:
        tokens = [_gated(composed, term, token) for token in x.reshape(-1, term.d_in)]
        return torch.stack(tokens).reshape(*x.shape[:-1], term.d_out)
    return reference_pair(composed, term.tensors, term.rank, Width(term.d_in, term.d_out))


def _gated(composed, term, token):
    """Compute the update of a token: each gate becomes coefficients, and the composition one without gates."""
    coefficients = {role: tensor for role, tensor in term.tensors.items() if role != "gain_out"}
    width = Width(term.d_in, term.d_out)
    options = copy.deepcopy(term.options)
    signals = {"x": token}
    for place in ("A", "between", "B"):
        for index, step in enumerate(options.get(place, [])):
            gate = step.pop("gate", None)
            if gate is None:
                continue
            router = composed.at(place)[index].router
            logits = coefficients.pop(router) @ signals[gate["of"]]
            chosen = range(len(logits))
            if gate["top"] is not None:
                chosen = sorted(chosen, key=lambda i: -float(logits[i].detach()))[: gate["top"]]
            total = sum(logits[i].exp() for i in chosen)
            zero = torch.zeros_like(total)
            weights = [logits[i].exp() / total if i in chosen else zero for i in range(len(logits))]
            placed = load_transform(COMPOSED, options).at(place)[index]
            inner = placed.transform.counted(place).coefficients
            coefficients[placed.owned[inner]] = torch.stack(weights).unsqueeze(0)
        if place == "A":
            static = load_transform(COMPOSED, {"A": options.get("A", [])})
            a = _composed_factor(static, "A", coefficients, term.rank, width)
            signals["A x"] = a @ token
    b, a = reference_pair(load_transform(COMPOSED, options), coefficients, term.rank, width)
    return b @ (a @ token)


def reference_pair(composed, values, rank, width):
    """Return B and A of a composition by dense products."""
    a = _composed_factor(composed, "A", values, rank, width)
    b = _composed_factor(composed, "B", values, rank, width).T
    for step in reversed(composed.at("between")):
        tensors = {inner: values[outer] for inner, outer in step.roles.items()}
        identity = torch.eye(rank, dtype=a.dtype)
        tensors |= {"A": identity, "B": identity}
        left, right = REFERENCES["Core"](
            TermValues(tensors, step.transform.options(), rank, rank, rank)
        )
        b = b @ left @ right
    return b, a


def _single(transform, role, tensors, rank, width):
    """The factor of one transform alone, by its reference, from the tensors of that transform."""
    term = TermValues(tensors, transform.options(), rank, *width)
    b, a = REFERENCES[transform.name](term)
    return a if role == "A" else b.T


def _composed_factor(composed, place, values, rank, width):
    """Compute a place by dense products of the references of its steps, from its end to its beginning."""
    chain = composed.at(place)
    ranks = composed.ranks(place, rank)
    other = "B" if place == "A" else "A"
    first = chain[0]
    tensors = {inner: values[outer] for inner, outer in first.roles.items()}
    alone = first.transform
    shapes = pool_shapes(alone, ranks[0], [width])[width]
    dtype = next(iter(values.values())).dtype
    for role, shape in shapes.items():  # The reference wants both factors.
        tensors.setdefault(role, torch.zeros(shape, dtype=dtype))
    factor = _single(first.transform, place, tensors, ranks[0], width)
    for later, rows in zip(chain[1:], ranks[1:], strict=True):
        # A mixing transform over a dense factor: its tensor is the factor before it.
        tensors = {inner: values[outer] for inner, outer in later.roles.items()}
        shapes = pool_shapes(later.transform, rows, [width])[width]
        tensors[place] = factor
        for role, shape in shapes.items():
            tensors.setdefault(role, torch.zeros(shape, dtype=dtype))
        assert other in tensors
        factor = _single(later.transform, place, tensors, rows, width)
    return factor


def dense_delta(term, tensors, d_in, d_out):
    """Return a term's update of its site's weight, ``scale * diag(out) B diag(rank) A (d_out, d_in)``.

    Gradients flow to the adapter's tensors, which are given by their names in the plan.
    """
    values = _values(term, tensors, d_in, d_out)
    b, a = REFERENCES[term.transform](values)
    if "gain_rank" in term.tensors:
        b = b @ torch.diag(values["gain_rank"][0])
    return term.scale * _gained(values) @ b @ a


def _values(term, tensors, d_in, d_out):
    named = {role: tensors[name] for role, name in term.tensors.items()}
    return TermValues(named, term.options, term.rank, d_in, d_out)


def _gained(term):
    """Return ``diag(out)``, or the identity if there is no such gain."""
    one = next(iter(term.tensors.values())).new_ones(term.d_out)
    return torch.diag(term["gain_out"][0] if "gain_out" in term.tensors else one)


def reference_model(model, plan, tensors, drop=None):
    """Return a copy of a base model with dense weights ``W + sum of dW``.

    Nonlinear terms, terms with dropout and terms on quantised weights are added to the output instead. The copy
    contains the adapter's tensors as the plan specifies, so gradients flow to them. Nothing else trains. ``drop``
    replaces dropout: it maps an input and a probability to the input after dropout. None disables it.
    """
    dense = copy.deepcopy(model).requires_grad_(False)
    maps = linear_maps(dense)
    inside = {}
    for site in plan.sites:
        # Tied modules all have the weight of the site.
        whole, ties = maps[site.path], [maps[path] for path in site.paths]
        weights = [
            replace(whole, owner=tie.owner, module=tie.module, parameter=tie.parameter)
            for tie in ties
        ]
        base = whole.matrix().clone() if whole.replacement() is None else whole.dense()
        for term in plan.terms_of[site.path]:
            if term.is_magnitude:
                linear = [t for t in plan.terms_of[site.path] if t.linear]
                scaled = partial(_scale_output, term, linear, tensors, base)
                dense.get_submodule(site.path).register_forward_hook(scaled)
                continue
            dropped = drop if term.dropout else None
            dense_weight = maps[site.path].replacement() is None
            if term.linear and dropped is None and dense_weight:
                for weight in weights:
                    of_parameter = inside.setdefault((weight.owner, weight.parameter), {})
                    of_parameter.setdefault(weight, []).append(term)
                continue
            for path in site.paths:
                update = partial(_add_update, term, tensors, (site.d_in, site.d_out), dropped)
                dense.get_submodule(path).register_forward_hook(update)
    for trained in plan.trained:
        for path in trained.paths:
            name, _, parameter = path.rpartition(".")
            module, instead = dense.get_submodule(name), _Instead(trained.tensor, tensors)
            parametrize.register_parametrization(module, parameter, instead, unsafe=True)
    for (owner, parameter), terms in inside.items():
        # `unsafe` skips a trial run, which would evaluate the update once more.
        module, delta = dense.get_submodule(owner), _Update(terms, tensors)
        parametrize.register_parametrization(module, parameter, delta, unsafe=True)
    return dense


def _add_update(term, tensors, widths, drop, module, inputs, output):
    """Return a forward hook that adds the update of a term to the output."""
    values = _values(term, tensors, *widths)
    x = inputs[0].to(dtype := next(iter(values.tensors.values())).dtype)
    if isinstance(module, nn.Embedding):
        ones = drop(torch.ones_like(x), term.dropout) if drop is not None else torch.ones_like(x)
        x = nn.functional.one_hot(inputs[0], module.num_embeddings).to(dtype) * ones.unsqueeze(-1)
        delta = dense_delta(term, tensors, *widths)
        update = x @ (delta if len(delta) == module.num_embeddings else delta.T)
        return output + (update * getattr(module, "embed_scale", 1)).to(output.dtype)
    if drop is not None:
        x = drop(x, term.dropout)
    if term.linear:
        update = x @ dense_delta(term, tensors, *widths).T
    else:
        update = term.scale * REFERENCES[term.transform](values, x) @ _gained(values)
    return output + update.to(output.dtype)


def _scale_output(term, terms, tensors, base, module, inputs, output):
    """Return a forward hook that scales the output without bias by a magnitude, DoRA's Eq. 5 row by row."""
    mu = tensors[term.tensors["mu"]][0]
    g = 1 + mu
    if not term.options["plain"]:
        base = base.to(mu)
        whole = base + sum(dense_delta(t, tensors, *base.shape[::-1]).detach() for t in terms)
        lengths = [(w.norm(), v.norm()) for w, v in zip(base, whole, strict=True)]
        g = g * torch.stack([before / after.maximum(before / 1000) for before, after in lengths])
    bias = 0 if getattr(module, "bias", None) is None else module.bias
    return (g * (output - bias) + bias).to(output.dtype)


class _Instead(nn.Module):
    """Replaces a parameter by a tensor of the adapter."""

    def __init__(self, name, tensors):
        super().__init__()
        self.name, self.shared = name, [tensors]

    def forward(self, kept):
        return self.shared[0][self.name].view(kept.shape).to(kept.dtype)


class _Update(nn.Module):
    """Adds the updates of some terms to the weights in a parameter."""

    def __init__(self, terms, tensors):
        super().__init__()
        # A list keeps the module from registering tensors that it does not own.
        self.terms, self.shared = terms, [tensors]

    def forward(self, kept):
        kept = kept.clone()
        for weight, terms in self.terms.items():
            matrix = weight.part(kept)
            for term in terms:
                update = dense_delta(term, self.shared[0], weight.d_in, weight.d_out)
                matrix += update.to(kept.dtype)
        return kept
