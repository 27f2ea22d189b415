"""Adapters combined as adapters: from files alone, exactly, and written so that PEFT loads them."""
