bishare plan --spec lora --model llama-7b
bishare plan lora --base llama-7b
bishare plan vera --model llama-7b --r 128
bishare plan lora --model llama-7b --set r=2 8 16
bishare plan lora --model llama-7b --set r=8,lora_alpha=16
bishare plan bishare_ke --model llama-7b --adapters 200 --memory 80
bishare plan lora --model llama-7b --adapters 200 --memory 8GB
bishare check t
bishare fit my-lora --to bishare_ss --model llama-7b --out smaller
bishare convert my-lora --format gguf --model llama-7b --out x
bishare merge my-lora --output_dir merged --colour red
bishare merge my-lora your-lora --model llama-7b --out merged
bishare verify my-lora --url http://localhost:8000/v1
bishare train lora --model tiny --train_file rows.jsonl -o out --epochs 3 --lora_r 4 --lora_alpha 16
bishare train lora --model tiny --data rows.jsonl --batch 4 --lora_target_modules q_proj,v_proj --bf26 true
bishare train lora --model tiny --data rows.jsonl --output_dir out --optim_arg
bishare train --resume
bishare eval my-lora --spec lora --data rows.jsonl
bishare merge my-lora --model llama-7b --out merged --lora_alpha 16
bishare plan lora --model llama-7b --adapters 10 --memory 24 GB
bishare show lora
bishare specs lora
bishare inspect rows.jsonl
bishare train --finetuning_type lora --model tiny --data rows.jsonl --output_dir out --train_on_inputs false
bishare eval --model hf --model_args pretrained=tiny,peft=my-lora --data rows.jsonl
