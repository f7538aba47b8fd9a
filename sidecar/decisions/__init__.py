"""Pure decisions: values in, values out; no await, no clock, no logger."""
