"""Arguments of ``fit`` for a training of four epochs of three batches on Digits."""

from tests.testers import ROOT

SMALL = [
    f"--config={ROOT / 'configs' / 'adversarial_training' / 'digits.yaml'}",
    "--test_after_fit=false",
    "--model.attack.init_args.steps=1",
    "--data.batch_size=8",
    "--trainer.max_epochs=4",
    "--trainer.limit_train_batches=3",
    "--trainer.limit_val_batches=2",
    "--data.eval_batch_size=16",
    "--trainer.callbacks=[]",
    "--model.lr_scheduler=torch.optim.lr_scheduler.ExponentialLR",
    "--model.lr_scheduler.gamma=0.5",
]
