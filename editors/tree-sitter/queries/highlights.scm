; Colours of a spec. The names of captures are those that Neovim, Helix and Zed know.

(comment) @comment
(string) @string
(number) @number

["spec" "use" "param" "let" "target" "train" "magnitude" "share" "replace"] @keyword
["where" "per" "rank" "via" "alpha" "scale" "dropout" "init" "freeze" "gain" "start" "nonzero" "out" "A" "B"] @keyword
["except" "match" "else"] @keyword
(model) @keyword
(plain) @keyword
["and" "or" "not" "in" "if"] @keyword.operator
["path" "kind" "parent"] @variable.builtin

["==" "!=" "<=" "<" ">=" ">" "+" "-" "*" "/" "//" "%" ".."] @operator
["(" ")" "{" "}"] @punctuation.bracket
["," ";" ":" "="] @punctuation.delimiter

; Only one of the two fits, since editors differ in which of two goes first.
((word (identifier) @variable) (#not-match? @variable "^(module|layer|layers)$"))
((word (identifier) @variable.builtin) (#match? @variable.builtin "^(module|layer|layers)$"))
(match (identifier) @variable)
(call function: (identifier) @function)

(spec name: (_) @type)
(share name: (_) @type)
(param name: (_) @constant)
(let name: (_) @type)
(via transform: (_) @constructor)
(option name: (_) @property)
(role (_) @constant)
