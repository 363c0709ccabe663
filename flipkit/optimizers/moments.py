"""What an optimizer takes over from the one before it."""

from flipkit.optimizers.averages import begin_averages


def take_moments(new, old, variables):
    """Gives `new`, an optimizer built for `variables`, the state that `old` has of the same ones.

    What `old` did not train starts with moments of zero, and with its value as its average.
    """
    known = {variable.path: variable for variable in old.variables}
    for variable in new.variables:
        # A rate that is a number is a variable too, one that a schedule computes is none.
        if variable.path in known and not variable.path.endswith("learning_rate"):
            variable.assign(known[variable.path])
    begin_averages(new, variables, known)
