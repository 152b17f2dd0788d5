// Every spec that ships has a colour for every character, by the engine that VS Code uses.
import assert from 'node:assert';
import { readFileSync, readdirSync } from 'node:fs';
import { createRequire } from 'node:module';
import oniguruma from 'vscode-oniguruma';
import textmate from 'vscode-textmate';

const require = createRequire(import.meta.url);
await oniguruma.loadWASM(readFileSync(require.resolve('vscode-oniguruma/release/onig.wasm')).buffer);
const file = new URL('syntaxes/share.tmLanguage.json', import.meta.url);
const registry = new textmate.Registry({
  onigLib: Promise.resolve({
    createOnigScanner: patterns => new oniguruma.OnigScanner(patterns),
    createOnigString: text => new oniguruma.OnigString(text),
  }),
  loadGrammar: async () => textmate.parseRawGrammar(readFileSync(file, 'utf8'), file.pathname),
});
const grammar = await registry.loadGrammar('source.share');
const specs = new URL('../../specs/', import.meta.url);

let count = 0;
const seen = new Set();
for (const name of readdirSync(specs)) {
  let state = textmate.INITIAL;
  for (const line of readFileSync(new URL(name, specs), 'utf8').split('\n')) {
    const { tokens, ruleStack } = grammar.tokenizeLine(line, state);
    state = ruleStack;
    for (const { startIndex, endIndex, scopes } of tokens) {
      const text = line.slice(startIndex, endIndex);
      if (!text.trim()) continue;
      const scope = scopes.at(-1);
      assert(scopes.length > 1 && !scope.startsWith('invalid'), `${name}: no colour for \`${text}\` in: ${line}`);
      seen.add(scope);
      count += 1;
    }
  }
}
assert(count > 1000);
for (const kind of ['comment', 'constant.numeric', 'keyword.control', 'keyword.other', 'entity.name.type', 'support.class']) {
  assert([...seen].some(scope => scope.startsWith(kind)), `nothing is ${kind}`);
}
console.log(`${count} tokens of ${readdirSync(specs).length} specs have their colours`);
