// Starts `bishare lsp`, the language server, for the specs that are open.
const { workspace } = require('vscode');
const { LanguageClient } = require('vscode-languageclient/node');

let client;

function activate() {
  const settings = workspace.getConfiguration('bishare');
  const [command, ...args] = settings.get('command');
  client = new LanguageClient(
    'bishare',
    'bishare',
    { command, args },
    {
      documentSelector: [{ language: 'share' }],
      initializationOptions: { model: settings.get('model'), allowUse: settings.get('allowUse') },
      // Settings that change are sent on.
      synchronize: { configurationSection: 'bishare' },
    },
  );
  return client.start();
}

function deactivate() {
  return client?.stop();
}

module.exports = { activate, deactivate };
