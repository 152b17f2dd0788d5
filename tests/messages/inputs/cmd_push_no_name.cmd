bishare push nowhere
