"""Which function makes remedies of which fact."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from bishare_dsl.advice import names, options, pools, statements, text, values
from bishare_dsl.advice.question import Question, Remedy
from bishare_dsl.language import facts as of_language
from bishare_dsl.plan import facts as of_plan
from bishare_dsl.spec import facts as of_spec

_BY_FACT: dict[type, Callable[[Any, Question], Iterator[Remedy]]] = {
    of_language.Foreign: text.foreign,
    of_language.Misplaced: statements.misplaced,
    of_language.Missing: statements.missing,
    of_language.MissingClause: statements.missing_clause,
    of_language.NoHeader: statements.no_header,
    of_language.NothingToReplace: statements.nothing_to_replace,
    of_language.NotReplaced: statements.not_replaced,
    of_language.QuotedPattern: text.quoted_pattern,
    of_language.Repeated: statements.repeated,
    of_language.ShareWithoutKeyword: statements.share_without_keyword,
    of_language.Stop: text.unreadable,
    of_language.UsedBefore: statements.used_before,
    of_plan.BadGate: options.bad_gate,
    of_plan.BadOption: options.bad_option,
    of_plan.ComparedPattern: values.compared_pattern,
    of_plan.JoinedTowers: values.joined_towers,
    of_plan.KeylessRole: values.keyless_role,
    of_plan.LetAsNumber: values.let_as_number,
    of_plan.NeedsMatrix: values.needs_matrix,
    of_plan.NoMagnitude: values.no_magnitude,
    of_plan.NoProbability: values.no_probability,
    of_plan.NoPool: pools.no_pool,
    of_plan.NothingSelected: pools.nothing_selected,
    of_plan.OtherReference: pools.other_reference,
    of_plan.ShareWithoutRole: pools.share_without_role,
    of_plan.Start: values.start,
    of_plan.UnequalPool: pools.unequal_pool,
    of_plan.UnknownOption: options.unknown_option,
    of_plan.UnknownPattern: names.unknown_pattern,
    of_plan.UnknownRole: options.unknown_role,
    of_plan.UnknownValue: names.unknown_value,
    of_plan.WithoutValue: pools.without_value,
    of_spec.Difference: values.difference,
    of_spec.Fault: values.fault,
    of_spec.FractionOfLayers: values.fraction_of_layers,
    of_spec.NamedLikeModules: values.named_like_modules,
    of_spec.NamesWithSign: values.names_with_sign,
    of_spec.NotANumber: values.not_a_number,
    of_spec.NotWhole: values.not_whole,
    of_spec.ReversedRange: values.reversed_range,
    of_spec.UnknownName: names.unknown_name,
    of_spec.WordsOrdered: values.words_ordered,
}


def remedies_for(question: Question) -> Iterator[Remedy]:
    """Yield remedies for a problem, the likeliest first."""
    fact = question.problem.fact
    return _BY_FACT[type(fact)](fact, question)
