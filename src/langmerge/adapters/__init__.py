"""`lm.adapters`: adapters combined as adapters, from files alone, and written so that PEFT loads them."""

from langmerge.adapters.applied import AdaptedModel, put_in
from langmerge.adapters.baselines import arimerge, emptied, layer_swap
from langmerge.adapters.full import transfer, transfer_recipe
from langmerge.adapters.lora import Factors
from langmerge.adapters.merging import Merging, merge
from langmerge.adapters.moving import transfer_adapter
from langmerge.adapters.reading import Adapter, open_parsed
from langmerge.adapters.three import Transfer

__all__ = [
    "AdaptedModel",
    "Adapter",
    "Factors",
    "Merging",
    "Transfer",
    "arimerge",
    "emptied",
    "layer_swap",
    "merge",
    "open_parsed",
    "put_in",
    "transfer",
    "transfer_adapter",
    "transfer_recipe",
]
