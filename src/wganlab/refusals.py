"""What Hydra objects to, in one line each that names the key, what is wrong, and what is allowed."""

import re
from collections.abc import Sequence

from hydra.errors import ConfigCompositionException, MissingConfigException, OverrideParseException

from wganlab.schema import ConfigError

#: How Hydra says that a config group has been given a number, or null.
GROUP_VALUE = "Config group override must be"
#: Key of an override, by Hydra's grammar.
KEY = re.compile(r"~?\+{0,2}[\w./@:$-]+", re.ASCII)


def unknown_key(error: Exception) -> str:
    """The key that an error of Hydra's calls unknown; empty for any other error."""
    text = " ".join(str(error).split())
    patterns = (r"Could not override '([^']+)'", r"Could not override '?([\w/@.]+)'?\. No match in the defaults list")
    found = [re.search(pattern, text) for pattern in patterns if isinstance(error, ConfigCompositionException)]
    return next((match[1] for match in found if match), "")


def one_line(error: Exception, overrides: Sequence[str] = (), hint: str = "") -> ConfigError:
    """Hydra's error as one line that names the key, what is wrong, and what is allowed."""
    if isinstance(error, ConfigError):
        return error
    text = " ".join(str(error).split())
    if isinstance(error, MissingConfigException) and error.options is not None:
        group, _, choice = (error.missing_cfg_file or "").rpartition("/")
        return ConfigError(group, f"={choice}: no such choice; allowed are {', '.join(error.options)}")
    if GROUP_VALUE in text and hint:
        return ConfigError("", hint)
    if several := re.search(r"Ambiguous value for argument '(.*?)' 1\. To use it as a list", text):
        key, _, value = several[1].partition("=")
        fault = f"several values are a sweep, which takes wganlab train -m; as a list they are {key}=[{value}]"
        return ConfigError(several[1], f": {fault}")
    if key := unknown_key(error):
        return ConfigError(key, f": unknown key; {hint}")
    if unmatched := re.search(r"Could not delete(?: from config)?\.? '?([\w./@]+)'?", text):
        return ConfigError(f"~{unmatched[1]}", ": there is no such key to delete")
    if isinstance(error, OverrideParseException):
        key, equals, _ = error.override.partition("=")
        wrong = next((character for character in key if not KEY.fullmatch(f"a{character}")), "")
        if equals and wrong:
            return ConfigError(error.override, f": no key has {wrong!r} in it; allowed are words with dots between")
        return ConfigError(error.override, ": not an override of the form key=value")
    return ConfigError(" ".join(overrides), f": {text}")
