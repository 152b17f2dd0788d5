"""Make words and tried edits of the facts that the compiler states.

`advise` is the entry. `remedies` has one function for each kind of fact; `trial` tries what they yield.
"""

from bishare_dsl.advice.trial import advise
