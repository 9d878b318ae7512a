import warnings

import pytest

from threestudio_eeg.compat import warning_filters

CAST = "`torch.cuda.amp.autocast(args...)` is deprecated. Please use `torch.amp.autocast`"
MODULES = ["threestudio.utils.ops", "/a/threestudio/systems/zero123"]


def caught(message, category, module):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        warning_filters.apply("cpu")
        warnings.warn_explicit(message, category, "file.py", 1, module=module)
    return len(found)


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize(
    ("message", "category"),
    [
        (CAST, FutureWarning),
        ("`torch.cuda.amp.custom_fwd(args...)` is deprecated.", FutureWarning),
        ("Using torch.cross without specifying the dim arg is deprecated.", UserWarning),
        ("register_new_resolver() is deprecated and will be removed", UserWarning),
        ("The 'warn' method is deprecated, use 'warning' instead", DeprecationWarning),
        ("invalid escape sequence '\\d'", SyntaxWarning),
    ],
)
def test_threestudios_own_are_hidden(message, category, module):
    assert caught(message, category, module) == 0


@pytest.mark.parametrize("module", ["my_module", "threestudio_eeg.guidance", "mythreestudio.x"])
def test_the_same_from_elsewhere_stays(module):
    assert caught(CAST, FutureWarning, module) == 1


def test_others_from_threestudio_stay():
    assert caught("your field is NaN", UserWarning, MODULES[0]) == 1


def test_the_old_name_of_an_argument_is_hidden_in_diffusers():
    message = "`torch_dtype` is deprecated and will be removed in version 1.0.0."
    assert caught(message, FutureWarning, "diffusers.utils.deprecation_utils") == 0
    assert caught(message, FutureWarning, "my_module") == 1
