bishare compile t.share --model smollm2-135m --out occupied --force
