"""The state that an optimizer takes over from the one before it."""

from flipkit.optimizers.averages import begin_averages


def take_moments(new, old, variables):
    """Copies the state of `old` to `new`, an optimizer built for `variables`, for the same variables.

    A variable that `old` did not train starts with moments of zero, and with its value as its average.
    """
    known = {variable.path: variable for variable in old.variables}
    for variable in new.variables:
        # A rate that is a number is a variable too; a rate that a schedule computes is not.
        if variable.path in known and not variable.path.endswith("learning_rate"):
            variable.assign(known[variable.path])
    begin_averages(new, variables, known)
