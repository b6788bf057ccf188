"""GRU4Rec: a recurrent network over item histories.

Paper: Hidasi et al. 2016, Session-based Recommendations with Recurrent Neural Networks,
https://arxiv.org/abs/1511.06939; the gates are those of Cho et al. 2014, https://arxiv.org/abs/1406.1078

    z_t = sigmoid(W_z x_t + U_z h_{t-1})                          eq. 2, h_0 = 0
    c_t = tanh(W x_t + r_t * (U h_{t-1})),
    r_t = sigmoid(W_r x_t + U_r h_{t-1})                          eq. 3-4
    h_t = (1 - z_t) * h_{t-1} + z_t * c_t                         eq. 1
    y_t = V h_t + b,  scores = <y_t, E[i]>                        one table for input and output

Differences from the official code: histories are windows of one user instead of session-parallel streams;
losses come from objectives/ (the code has TOP1, BPR and their max forms); as in PyTorch the reset gate acts
on U h after the product and z is 1 - z of the paper; gates have biases; y_t brings the state back to the
width of the item vectors. All matrices start from Xavier's uniform, as there.

The recurrence reads rows from the left (`Rows`), so that padding stands after the items and no state has
seen it. `step` carries the state on; once a window is full, `begin` forgets its oldest item while a state
would not, so from then on each event reads the window again.

Dimension key: B batch, L positions, N slots, H width of the state, D width, R rows of a group, W places each.
"""

from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from lexrec.data.batch import Batch, Places
from lexrec.item_encoders.base import Embedded, ItemEncoder
from lexrec.models._layers import Dropout, Linear, Rows
from lexrec.models.base import Encoded, ModelConfig, SequenceModel, State, append


class GRU4RecConfig(ModelConfig):
    """Sizes of GRU4Rec."""

    name: Literal["gru4rec"] = "gru4rec"
    n_layers: int = Field(1, ge=1)
    state_dim: int = Field(128, ge=1)
    """Width of the recurrent state."""
    dropout: float = Field(0.3, ge=0, lt=1)
    """On the item vectors, and between layers."""


class _Run(NamedTuple):
    """What the layers made of a row: outputs of the last one, and each layer's newest state."""

    y_ND: Tensor
    states: tuple[Tensor, ...]
    """[B, H] a layer; zero where there is no item yet."""


class GRU4Rec(SequenceModel):
    """GRU layers over item vectors, each brought back to the width of the item vectors."""

    causal = True
    layout = "packed"
    incremental = True

    config: GRU4RecConfig

    def __init__(self, config: GRU4RecConfig, items: ItemEncoder) -> None:
        super().__init__()
        self.config = config
        self.items = items
        self.max_len = config.max_len
        self.dropout = Dropout(config.dropout)
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.n_layers))

    def forward(self, batch: Batch) -> Encoded:
        y_ND, aux = self.encode_slots(batch)
        return Encoded(Places.of(batch).unpack(y_ND), aux)

    def encode_slots(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        embedded = self.items(batch)
        return self._run(batch, embedded, None).y_ND, embedded.aux

    def begin(self, batch: Batch) -> State:
        return self._state(batch, batch, self._run(batch, self.items(batch), None))

    def step(self, state: State, item_B: Tensor, time_B: Tensor | None = None) -> State:
        longer = append(state.batch, item_B, time_B, self.max_len)
        is_full = bool((state.batch.length_B == self.max_len).any())
        # An encoder that reads ahead gives the older items other vectors now.
        if is_full or not self.items.causal:
            return self.begin(longer)
        read, embedded = _newest(longer, self.items(longer))
        return self._state(longer, read, self._run(read, embedded, state.cache))

    @staticmethod
    def _state(batch: Batch, read: Batch, run: _Run) -> State:
        """Where a history stands once `read`, all of it or its newest event, was run through."""
        return State(batch, Places.of(read).unpack(run.y_ND)[:, -1], run.states)

    def _run(self, batch: Batch, embedded: Embedded, before: tuple[Tensor, ...] | None) -> _Run:
        rows, places = Rows.from_the_left(batch), Places.of(batch)
        x_ND, states = places.pack(embedded.x_BLD), []
        for i, block in enumerate(self.blocks):
            x_ND, h_NH = block(self.dropout(x_ND), rows, before and before[i])
            if i == 0 and embedded.after_block0_BLD is not None:
                x_ND = x_ND + places.pack(embedded.after_block0_BLD)
            states.append(places.unpack(h_NH)[:, -1] * batch.is_item_BL[:, -1:])
        return _Run(x_ND, tuple(states))


class _Block(nn.Module):
    """One GRU layer and the map back to the width of the item vectors."""

    def __init__(self, config: GRU4RecConfig) -> None:
        super().__init__()
        self.gru = nn.GRU(config.dim, config.state_dim, batch_first=True)
        self.out = Linear(config.state_dim, config.dim)
        for parameter in self.parameters():
            if parameter.ndim == 1:
                nn.init.zeros_(parameter)
                continue
            for gate_HD in parameter.chunk(3) if len(parameter) == 3 * config.state_dim else [parameter]:
                nn.init.xavier_uniform_(gate_HD)

    def forward(self, x_ND: Tensor, rows: Rows, before_BH: Tensor | None) -> tuple[Tensor, Tensor]:
        """Outputs and states; `before_BH` is where rows of one group begin."""
        start_1BH = None if before_BH is None else before_BH[None]
        # Under autocast cuDNN's recurrence would run in float16, whose small gradients vanish unscaled.
        with torch.autocast(x_ND.device.type, enabled=False):
            parts_RWD = rows.lay(x_ND.to(self.out.weight.dtype))
            h_NH = rows.gather(self.gru(part_RWD, start_1BH)[0] for part_RWD in parts_RWD)
        return self.out(h_NH), h_NH


def _newest(batch: Batch, embedded: Embedded) -> tuple[Batch, Embedded]:
    """The newest position alone."""
    after_block0_BLD = embedded.after_block0_BLD
    after_block0_B1D = None if after_block0_BLD is None else after_block0_BLD[:, -1:]
    newest = Batch(batch.item_BL[:, -1:], batch.is_item_BL[:, -1].long(), batch.user_B)
    return newest, Embedded(embedded.x_BLD[:, -1:], embedded.aux, after_block0_B1D)
