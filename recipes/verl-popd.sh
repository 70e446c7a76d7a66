#!/usr/bin/env bash
# POPD inside verl 0.9, with the settings of the paper's Table 3 (arXiv:2605.31490v2), pair 1. One node of 8 GPUs: 4 train and
# sample, 4 hold the teacher. Further arguments are overrides of verl's: `bash recipes/verl-popd.sh trainer.total_epochs=1`.
# Checked as a configuration (`--cfg job`) and, at the size of a CPU, up to verl's servers; never run on GPUs by us.
set -euo pipefail

TRAIN=${TRAIN:-data/dapo-math-17k.parquet}    # verl's columns: data_source, prompt, reward_model
TEST=${TEST:-data/aime-2024.parquet}

settings=(
  # The horizon. hopd is asked for every training batch and for no validation batch.
  actor_rollout_ref.model.external_lib=hopd.integrations.verl
  +actor_rollout_ref.rollout.agent.agent_loop_manager_class=hopd.integrations.verl_queue.HorizonManager
  +actor_rollout_ref.rollout.custom.horizon.controller=progressive
  +actor_rollout_ref.rollout.custom.horizon.start=1024    # the paper does not give the start
  +actor_rollout_ref.rollout.custom.horizon.increment=9
  # TOPD instead of these three: controller=truncated and +...custom.horizon.ratio=0.1

  actor_rollout_ref.model.path=deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B
  distillation.enabled=true
  distillation.teacher_models.teacher_model.model_path=hbx/JustRL-DeepSeek-1.5B
  distillation.teacher_models.teacher_model.inference.tensor_model_parallel_size=1
  distillation.nnodes=1
  distillation.n_gpus_per_node=4
  # K = 16. verl's top-K is the teacher's, with forward KL; the paper's is the student's, with reverse KL, which verl does not
  # have. Its sampled estimator is loss_mode=k1 with use_policy_gradient=true.
  distillation.distillation_loss.loss_mode=forward_kl_topk
  distillation.distillation_loss.topk=16
  distillation.distillation_loss.use_policy_gradient=false
  distillation.distillation_loss.use_task_rewards=false

  "data.train_files=$TRAIN"
  "data.val_files=$TEST"
  data.train_batch_size=64
  data.max_prompt_length=1024
  data.max_response_length=15360    # T: the full length
  data.filter_overlong_prompts=true

  actor_rollout_ref.rollout.name=vllm
  actor_rollout_ref.rollout.n=4
  actor_rollout_ref.rollout.temperature=1.0
  actor_rollout_ref.rollout.top_p=1.0
  actor_rollout_ref.rollout.val_kwargs.n=16    # avg@16; temperature and top-p of the validation are ours
  actor_rollout_ref.rollout.val_kwargs.do_sample=true
  actor_rollout_ref.rollout.val_kwargs.temperature=0.6
  actor_rollout_ref.rollout.val_kwargs.top_p=0.95

  actor_rollout_ref.actor.optim.lr=1e-6
  actor_rollout_ref.actor.ppo_mini_batch_size=64
  actor_rollout_ref.actor.use_dynamic_bsz=true
  actor_rollout_ref.actor.ppo_max_token_len_per_gpu=16384
  actor_rollout_ref.actor.use_kl_loss=false
  # A mean over the batch's tokens: a shorter horizon does not scale the gradient.
  actor_rollout_ref.actor.loss_agg_mode=token-mean
  actor_rollout_ref.model.use_remove_padding=true
  actor_rollout_ref.model.enable_gradient_checkpointing=true
  algorithm.adv_estimator=grpo
  algorithm.use_kl_in_reward=false

  trainer.nnodes=1
  trainer.n_gpus_per_node=4
  trainer.total_epochs=2
  trainer.test_freq=5
  trainer.save_freq=20
  trainer.val_before_train=true
  trainer.project_name=hopd
  trainer.experiment_name=popd-r1-distill-1.5b
)
exec python -m verl.trainer.main_ppo "${settings[@]}" "$@"
