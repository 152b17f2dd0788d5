// The grammar of `.share` files for tree-sitter: that of `grammars/share.lark`, rule by rule, for whole texts. `make
// tree-sitter` writes the parser in `src`; tests/highlight/test_tree_sitter.py holds it to what bishare reads.

const list = (rule) => seq(rule, repeat(seq(',', rule)));
const IF = 0, OR = 1, AND = 2, NOT = 3, COMPARISON = 4, RANGE = 5, SUM = 6, PRODUCT = 7, MINUS = 8;

module.exports = grammar({
  name: 'share',

  extras: ($) => [/[ \t\f\r\n]+/, $.comment],
  word: ($) => $.identifier,
  // `where kind q_proj per layer` has a pattern, and `A per kind core per layer` a role: taken for one too.
  conflicts: ($) => [[$.range], [$.match, $.word]],

  rules: {
    source_file: ($) => repeat($._statement),

    _statement: ($) =>
      choice(
        $.spec,
        $.use,
        $.param,
        $.let,
        $.target,
        $.train,
        $.magnitude,
        $._default,
        $.share,
        $.replace,
      ),
    spec: ($) => seq('spec', field('name', $._name)),
    use: ($) => seq('use', field('name', $._name)),
    param: ($) => seq('param', field('name', $._name), '=', $._expression),
    let: ($) => seq('let', field('name', $._name), '=', $.selection),
    target: ($) => seq('target', $.selection),
    train: ($) => seq('train', $.selection),
    magnitude: ($) =>
      prec.right(
        seq('magnitude', repeat(choice($.where, $.per, $.init, $.start_nonzero, $.plain))),
      ),
    plain: () => 'plain',
    // The clauses of a share are all that stand directly behind it.
    share: ($) => prec.right(seq('share', field('name', $._name), repeat($._clause))),
    replace: ($) => seq('replace', choice($.param, $.let, $.share)),

    _default: ($) => choice($.alpha, $.scale, $.dropout, $.init),
    _clause: ($) =>
      choice($.where, $.per, $.rank, $.via, $._default, $.freeze, $.gain, $.start_nonzero),
    where: ($) => seq('where', $.selection),
    per: ($) => seq(optional($.role), 'per', choice($.model, $.key)),
    model: () => 'model',
    key: ($) => list($._expression),
    rank: ($) => seq('rank', choice($._expression, $.arms)),
    via: ($) => seq('via', field('transform', $._name), optional($.options)),
    options: ($) => seq('(', optional(seq(list($.option), optional(','))), ')'),
    option: ($) => seq(field('name', $._name), '=', $._expression),
    alpha: ($) => seq('alpha', $._expression),
    scale: ($) => seq('scale', $._expression),
    dropout: ($) => seq('dropout', $._expression),
    init: ($) => seq('init', list($.initial)),
    initial: ($) => seq($.role, $._expression),
    freeze: ($) => seq('freeze', list($.role)),
    role: ($) => choice('A', 'B', $._name),
    gain: ($) => seq('gain', list($.diagonal)),
    diagonal: ($) => seq(choice('rank', 'out'), 'init', $._expression),
    start_nonzero: () => seq('start', 'nonzero'),

    selection: ($) => seq(list($._expression), optional($.exclude)),
    exclude: ($) => seq('except', list($._expression)),
    arms: ($) =>
      seq(
        'match',
        $._expression,
        '{',
        choice(seq($.arm, repeat(seq(';', $.arm)), optional(seq(';', $.otherwise))), $.otherwise),
        optional(';'),
        '}',
      ),
    arm: ($) => seq(list($._item), ':', $._expression),
    otherwise: ($) => seq('else', ':', $._expression),

    _expression: ($) =>
      choice($.conditional, $.any_of, $.all_of, $.negation, $.compare, $.member, $.sum, $.product, $._atom),
    conditional: ($) =>
      prec.right(IF, seq($._expression, 'if', $._expression, 'else', $._expression)),
    any_of: ($) => prec.left(OR, seq($._expression, 'or', $._expression)),
    all_of: ($) => prec.left(AND, seq($._expression, 'and', $._expression)),
    negation: ($) => prec(NOT, seq('not', $._expression)),
    compare: ($) =>
      prec.left(
        COMPARISON,
        seq($._expression, choice('==', '!=', '<=', '<', '>=', '>'), $._expression),
      ),
    member: ($) => prec.left(COMPARISON, seq($._expression, 'in', choice($.range, $.set))),
    set: ($) => seq('{', list($._item), optional(','), '}'),
    _item: ($) => choice($._expression, $.range),
    // One end may be missing. `24.. rank 8` ends before the clause.
    range: ($) =>
      choice(
        prec.dynamic(1, prec(RANGE, seq($._expression, '..', $._expression))),
        prec(RANGE, seq($._expression, '..')),
        prec(RANGE, seq('..', $._expression)),
      ),
    sum: ($) => prec.left(SUM, seq($._expression, choice('+', '-'), $._expression)),
    product: ($) =>
      prec.left(PRODUCT, seq($._expression, choice('*', '/', '//', '%'), $._expression)),

    _atom: ($) => choice($.number, $.negative, $.word, $.match, $.group, $.call),
    group: ($) => seq('(', $._expression, ')'),
    call: ($) => seq(field('function', $.identifier), '(', list($._expression), ')'),
    match: ($) => prec.dynamic(1, seq(choice('path', 'kind', 'parent'), $._name)),
    negative: ($) => prec(MINUS, seq('-', $._atom)),
    // Some keywords also name what an expression may use: a setting, or an attribute of a site.
    word: ($) => choice($._name, 'alpha', 'rank', 'in', 'out', 'path', 'kind', 'parent'),

    _name: ($) => choice($.identifier, $.string),
    identifier: () => /[A-Za-z_][A-Za-z0-9_]*/,
    string: () => /"([^"\\\n]|\\[^\n])*"/,
    number: () => /[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?/,
    comment: () => /#[^\n]*/,
  },
});
