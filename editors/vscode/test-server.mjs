// The built extension starts the language server and shows what it says. The module `vscode` is stood in for: all that
// the client asks of it and that does not matter here is an object that does nothing.
import assert from 'node:assert';
import { createRequire } from 'node:module';
import Module from 'node:module';

const require = createRequire(import.meta.url);
const command = process.env.BISHARE_LSP?.split(' ') ?? ['bishare', 'lsp'];
const settings = { command, model: 'llama-7b', allowUse: false };
const text = 'spec s\ntarget q_porj\nshare a per module rank 4\n';

class Disposable {
  dispose() {}
  static from() { return new Disposable(); }
}
class EventEmitter {
  event = () => new Disposable();
  fire() {}
  dispose() {}
}
class CancellationTokenSource {
  token = { isCancellationRequested: false, onCancellationRequested: () => new Disposable() };
  cancel() {}
  dispose() {}
}
class Position { constructor(line, character) { Object.assign(this, { line, character }); } }
class Range { constructor(start, end) { Object.assign(this, { start, end }); } }
class Diagnostic { constructor(range, message, severity) { Object.assign(this, { range, message, severity }); } }
const Uri = { parse: value => ({ scheme: 'file', toString: () => value, with: () => Uri.parse(value) }) };

function rest(known) {
  return new Proxy(known, {
    get: (_, name) => {
      if (name in known || typeof name === 'symbol' || name === 'then') return known[name];
      return /^(on|register|create)[A-Z]/.test(name) ? () => new Disposable() : rest(class {});
    },
  });
}

let found;
const diagnosed = new Promise(resolve => (found = resolve));
const registered = new Set();
const complaints = [];
const languages = new Proxy({}, {
  get: (_, name) => {
    if (name === 'match') return () => 1;
    if (name === 'createDiagnosticCollection') {
      return () => ({ set: (uri, list) => list?.length && found(list), delete() {}, clear() {}, dispose() {} });
    }
    return () => (registered.add(name), new Disposable());
  },
});
const document = {
  uri: Uri.parse('file:///nowhere/my.share'), languageId: 'share', version: 1, fileName: 'my.share', getText: () => text,
};
const vscode = rest({
  Disposable, EventEmitter, CancellationTokenSource, Position, Range, Diagnostic, Uri, languages,
  CancellationError: class extends Error {},
  CodeAction: class {},
  env: { language: 'en', appName: 'test' },
  version: '1.91.0',
  workspace: rest({
    getConfiguration: section => ({
      get: key => (section === 'bishare' ? settings[key] : { bishare: settings }[key]), inspect: () => undefined,
    }),
    textDocuments: [document], notebookDocuments: [], workspaceFolders: undefined,
  }),
  window: rest({
    createOutputChannel: () => ({
      info() {}, warn() {}, error: line => complaints.push(line), appendLine() {}, append() {}, dispose() {},
      onDidChangeLogLevel: () => new Disposable(),
    }),
    showErrorMessage: message => assert.fail(message),
    visibleTextEditors: [], activeTextEditor: undefined,
    tabGroups: { all: [], onDidChangeTabs: () => new Disposable() },
  }),
});

const load = Module._load;
Module._load = (name, ...more) => (name === 'vscode' ? vscode : load(name, ...more));
const { activate, deactivate } = require('./out/extension.js');
const late = setTimeout(() => { throw new Error('the server says nothing'); }, 60_000);
await activate();
const [problem] = await diagnosed;
assert.match(problem.message, /`q_porj` matches no module of llama-7b/);
for (const name of ['CompletionItem', 'CodeActions', 'DocumentFormattingEdit']) {
  assert(registered.has(`register${name}Provider`), name);
}
await deactivate();
assert.deepEqual(complaints, []);
clearTimeout(late);
console.log('the extension starts the language server, and shows its diagnostics');
