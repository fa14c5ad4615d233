"""Tries grammars out before they are let in: a hostile one brings down a process that nobody else needs."""

from diptych.frontend.grammar_check.checker import GrammarChecker as GrammarChecker
