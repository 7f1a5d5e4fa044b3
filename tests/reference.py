"""Eqs. 3 to 8 and the other columns of Table 1 in numpy with plain loops: slow, obvious, and
written without looking at the library.
"""

import numpy as np


def sigmoid(x):
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-x))


def silu(x):
    return x * sigmoid(x)


def linear(p, x):
    return np.asarray(x) @ p["kernel"] + p.get("bias", 0)


def mlp(p, x):
    return linear(p["Dense_1"], silu(linear(p["Dense_0"], x)))


def layer_norm(p, x):
    centered = x - x.mean(axis=-1, keepdims=True)
    scaled = centered / np.sqrt((centered**2).mean(axis=-1, keepdims=True) + 1e-6)
    return scaled * p["scale"] + p["bias"]


def phi_e(p, *inputs):
    return silu(linear(p["Dense_0"], silu(linear(p, np.concatenate(inputs)))))


def egcl(
    p,
    h,
    x,
    v,
    edges,
    senders,
    receivers,
    n_node,
    *,
    velocity,
    infer_edges,
    coordinate_aggregation,
    normalize,
    tanh,
    clip,
    update_coordinates,
    residual,
):
    new_h, new_x, new_v = [], [], []
    graph_of = np.repeat(np.arange(len(n_node)), n_node)
    for i in range(len(x)):
        m_i, move, degree = (
            np.zeros(p["phi_h"]["Dense_1"]["kernel"].shape[1]),
            np.zeros(x.shape[1]),
            0,
        )
        for k in range(len(senders)):
            if receivers[k] != i:
                continue
            j = senders[k]
            r_ij = x[i] - x[j]
            attributes = [] if edges is None else [edges[k]]
            m_ij = phi_e(p["phi_e"], h[i], h[j], [np.dot(r_ij, r_ij)], *attributes)
            if infer_edges:
                m_ij = m_ij * sigmoid(linear(p["phi_inf"], m_ij))
            m_i = m_i + m_ij
            degree += 1
            if update_coordinates:
                weight = mlp(p["phi_x"], m_ij)
                if tanh:
                    weight = np.tanh(weight)
                if normalize:
                    r_ij = r_ij / (np.sqrt(np.dot(r_ij, r_ij)) + 1e-8)
                one = r_ij * weight
                move = move + (one if clip is None else np.clip(one, -clip, clip))
        c = {"mean": max(degree, 1), "sum": 1, "all_nodes": max(n_node[graph_of[i]] - 1, 1)}[
            coordinate_aggregation
        ]
        move = move / c
        dh = mlp(p["phi_h"], np.concatenate([h[i], m_i]))
        new_h.append(h[i] + dh if residual else dh)
        if not update_coordinates:
            new_x.append(x[i])
            new_v.append(None if v is None else v[i])
            continue
        if v is not None:
            move = move + mlp(p["phi_v"], h[i]) * v[i]
            new_v.append(move if velocity == "carried" else v[i])
        new_x.append(x[i] + move)
    return np.array(new_h), np.array(new_x), None if v is None else np.array(new_v)


def egnn(p, h, x, v, edges, senders, receivers, n_node, layers, **options):
    h = linear(p["embedding"], h)
    for layer in range(layers):
        h, x, v = egcl(p[f"layer_{layer}"], h, x, v, edges, senders, receivers, n_node, **options)
    return h, x, v


def gnn(p, h, x, v, edges, senders, receivers, n_node, layers):
    h = [
        linear(p["embedding"], x[i] if v is None else np.concatenate([x[i], v[i]]))
        for i in range(len(x))
    ]
    for layer in range(layers):
        phi_h, new_h = p[f"layer_{layer}_phi_h"], []
        for i in range(len(x)):
            m_i = np.zeros(len(h[i]))
            for k in range(len(senders)):
                if receivers[k] == i:
                    attributes = [] if edges is None else [edges[k]]
                    m_i = m_i + phi_e(p[f"layer_{layer}_phi_e"], h[i], h[senders[k]], *attributes)
            new_h.append(h[i] + mlp(phi_h, np.concatenate([h[i], m_i])))
        h = new_h
    return np.array(h), np.array([mlp(p["decoder"], h_i) for h_i in h]), v


def radial_field(p, h, x, v, edges, senders, receivers, n_node, layers, *, tanh):
    for layer in range(layers):
        new_x = []
        for i in range(len(x)):
            move, degree = np.zeros(x.shape[1]), 0
            for k in range(len(senders)):
                if receivers[k] == i:
                    r_ij = x[i] - x[senders[k]]
                    attributes = [] if edges is None else edges[k]
                    weight = mlp(
                        p[f"layer_{layer}_phi_rf"],
                        np.concatenate([[np.sqrt(np.dot(r_ij, r_ij))], attributes]),
                    )
                    move, degree = move + r_ij * (np.tanh(weight) if tanh else weight), degree + 1
            new_x.append(x[i] + move / max(degree, 1))
            if v is not None:
                new_x[i] = (
                    new_x[i] + mlp(p[f"layer_{layer}_phi_v"], [np.sqrt(np.dot(v[i], v[i]))]) * v[i]
                )
        x = np.array(new_x)
    return h, x, v


def decoder(p, z):
    """Eq. 9, or with a weight per dimension; every pair, the diagonal included."""
    told = np.empty((len(z), len(z)))
    for i in range(len(z)):
        for j in range(len(z)):
            squared = (z[i] - z[j]) ** 2
            told[i, j] = sigmoid(
                linear(p["linear"], squared) if "linear" in p else p["w"] * np.sum(squared) + p["b"]
            ).item()
    return told
