bishare show lora
